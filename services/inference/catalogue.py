"""`FOREBAY_MODEL`, `FOREBAY_ADAPTERS` and `FOREBAY_PINNED` read: which names the pod serves, and from where."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import PurePath
from typing import NamedTuple

from services.inference.engine.source import BUNDLED, BUNDLED_NAME, HUB_ID

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
ADAPTER = re.compile(r"(?P<base>.+):(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)")


class Adapter(NamedTuple):
    """A LoRA adapter: of which model, under which name, from where."""

    base: str
    name: str
    source: str


def parse_catalogue(text: str) -> dict[str, str]:
    """Sources by name, in the order given, of `[name=]source[,…]`.

    Raises:
        ValueError: nothing is named, or one name stands for two sources; a sentence for the operator.
    """
    found: dict[str, str] = {}
    for part in _parts(text):
        before, equals, after = part.partition("=")
        # A path may have an equals sign in it, but what is before it then is no name.
        named = bool(equals) and NAME.fullmatch(before.strip()) is not None
        name, source = (before.strip(), after.strip()) if named else (default_name(part), part)
        if not source:
            raise ValueError(f"FOREBAY_MODEL gives the model '{name}' no source.")
        if name in found:
            raise ValueError(f"FOREBAY_MODEL names two models '{name}'; give one another name with name=source.")
        found[name] = source
    if not found:
        raise ValueError("FOREBAY_MODEL names no model.")
    return found


def parse_adapters(text: str, models: Collection[str]) -> dict[str, Adapter]:
    """Adapters by the name that requests call them, `model:adapter`, of `model:adapter=source[,…]`.

    Raises:
        ValueError: one is of no model here, has no source, or has a name that is taken; a sentence for the operator.
    """
    found: dict[str, Adapter] = {}
    for part in _parts(text):
        name, _, source = (piece.strip() for piece in part.partition("="))
        parsed = ADAPTER.fullmatch(name)
        if parsed is None or not source:
            raise ValueError(f"FOREBAY_ADAPTERS must be model:adapter=source, comma-separated, which '{part}' is not.")
        if parsed["base"] not in models:
            raise ValueError(f"FOREBAY_ADAPTERS names the model '{parsed['base']}', which FOREBAY_MODEL does not.")
        if name in found or name in models:
            raise ValueError(f"FOREBAY_ADAPTERS names '{name}', which is there already.")
        found[name] = Adapter(parsed["base"], parsed["name"], source)
    return found


def parse_pinned(text: str, models: Collection[str]) -> set[str]:
    """The models that `model[,…]` names.

    Raises:
        ValueError: one of them is not here.
    """
    pinned = set(_parts(text))
    for name in pinned.difference(models):
        raise ValueError(f"FOREBAY_PINNED names the model '{name}', which FOREBAY_MODEL does not.")
    return pinned


def _parts(text: str) -> Iterator[str]:
    return filter(None, (part.strip() for part in text.split(",")))


def default_name(source: str) -> str:
    """The name of a model that was given none: the last part of its source, in lower case, without `.gguf`."""
    if source == BUNDLED:
        return BUNDLED_NAME
    hub = HUB_ID.fullmatch(source)
    return (hub["name"] if hub else PurePath(source).name).lower().removesuffix(".gguf")
