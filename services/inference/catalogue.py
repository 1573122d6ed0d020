"""`FOREBAY_MODEL` read: which names the pod serves, and where each model comes from."""

from __future__ import annotations

import re
from pathlib import PurePath

from services.inference.engine.source import BUNDLED, BUNDLED_NAME, HUB_ID

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


def parse_catalogue(text: str) -> dict[str, str]:
    """Sources by name, in the order given, of `[name=]source[,…]`.

    Raises:
        ValueError: nothing is named, or one name stands for two sources; a sentence for the operator.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
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


def default_name(source: str) -> str:
    """The name of a model that was given none: the last part of its source, in lower case, without `.gguf`."""
    if source == BUNDLED:
        return BUNDLED_NAME
    hub = HUB_ID.fullmatch(source)
    return (hub["name"] if hub else PurePath(source).name).lower().removesuffix(".gguf")
