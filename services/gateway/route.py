"""Where a call went and why, on one line: the header `X-Forebay-Route`, and the same in the log and in the ledger.

`model=a; replica=10.0.0.7:8000; policy=prefix; queue=3; cache=miss; retries=0`, pairs as in the parameters of RFC 8941
section 3.1.2, with one liberty: a value is bare where it holds nothing that would end it, so that an address needs no
quotes. docs/routing.md says what each pair means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_BARE = re.compile(r"[A-Za-z0-9._:/@+*\[\]-]+")
_PAIR = re.compile(r'\s*([a-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^;]*))\s*(?:;|$)')


def write(pairs: Mapping[str, Any]) -> str:
    """The line. Pairs without a value (None) are left out; what cannot stand in a header becomes `?`."""
    return "; ".join(f"{name}={_value(value)}" for name, value in pairs.items() if value is not None)


def read(line: str) -> dict[str, str]:
    """The pairs of a line."""
    return {
        name: bare.strip() if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        for name, quoted, bare in ((one[1], one[2], one[3]) for one in _PAIR.finditer(line))
    }


def replica(url: str | None) -> str | None:
    """A pod's address without its scheme and whatever else its URL holds."""
    return urlsplit(url).netloc.rpartition("@")[2] if url else None


def _value(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    if _BARE.fullmatch(text):
        return text
    kept = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    return '"' + kept.replace("\\", "\\\\").replace('"', '\\"') + '"'
