"""What may come in: bounds on the shape of a request, and its cleaning where a setting asks for it.

The models of `services.common.wire` say what each known field may be. This holds what is true of every value, also in
fields that only another engine knows, and runs before them. Size is bounded before that, by `max_body_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

import nh3

from services.common.errors import InvalidRequest
from services.common.settings import ScreeningSettings


def apply(settings: ScreeningSettings, body: dict[str, Any]) -> None:
    """Holds `body` against the bounds, and strips its texts of HTML where `strip_html` is set.

    Raises:
        InvalidRequest: something is too many, too long, too deep or too large; names the field.
    """
    check(body, depth=settings.max_json_depth, length=settings.max_text_length)
    messages = body.get("messages")
    if type(messages) is list and len(messages) > settings.max_messages:
        raise _refusal("messages", f"at most {settings.max_messages} messages are allowed")
    if settings.strip_html:
        strip(body)


def check(body: dict[str, Any], *, depth: int, length: int) -> None:
    """Looks at every value of `body` once, level by level.

    Raises:
        InvalidRequest: one lies deeper than `depth` levels, is a text of more than `length` characters, or a number
            that JSON can't say; names the field.
    """
    level: list[Any] = [body]
    for _ in range(depth):
        inner = []
        for container in level:
            for value in container.values() if type(container) is dict else container:
                kind = type(value)
                if kind is str:
                    if len(value) > length:
                        raise _refusal(_path(body, value), f"at most {length} characters are allowed in one text")
                elif kind is dict or kind is list:
                    inner.append(value)
                elif kind is float and not isfinite(value):
                    raise _refusal(_path(body, value), "the number is too large")
        if not inner:
            return
        level = inner
    raise _refusal(_path(body, level[0]), f"nested deeper than {depth} levels")


def strip(body: dict[str, Any]) -> None:
    """Takes the HTML out of the texts of messages or prompt, in place: tags go, with what stands in `script` and
    `style`, and what is left is escaped (`<` becomes `&lt;`), as in a page. It damages code, hence off by default."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        body["prompt"] = clean(prompt)
    elif isinstance(prompt, list):
        body["prompt"] = [clean(each) if isinstance(each, str) else each for each in prompt]
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            message["content"] = clean(content)
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                part["text"] = clean(part["text"])


def clean(text: str) -> str:
    """The text without any HTML."""
    return nh3.clean(text, tags=set(), attributes={}, link_rel=None)


def _refusal(where: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{where}': {reason}.", param=where)


def _path(body: dict[str, Any], wanted: Any) -> str:
    """The dotted path of this very value in `body`; of a deep one the beginning, which is enough to find it."""
    return ".".join(next(_paths(body, wanted))[:8])


def _paths(value: Any, wanted: Any) -> Iterator[list[str]]:
    for name, child in value.items() if isinstance(value, dict) else enumerate(value):
        if child is wanted:
            yield [str(name)]
        elif isinstance(child, dict | list):
            yield from ([str(name), *rest] for rest in _paths(child, wanted))
