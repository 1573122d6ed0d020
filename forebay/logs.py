"""The files that children write their output to: rotated at each start and when they grow, read for a last word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TAIL = 8192
"""Bytes at the end of a log in which the last line is looked for."""


def rotate(path: Path, keep: int) -> None:
    """Moves `x.log` to `x.log.1`, `x.log.1` to `x.log.2` and so on; only `keep` old files stay."""
    if not path.exists() or path.stat().st_size == 0:
        return
    _shift(path, keep)
    if keep:
        path.replace(_numbered(path, 1))
    else:
        path.unlink()


def trim(path: Path, limit: int, keep: int) -> None:
    """Rotates a log that is being written once it is larger than `limit` bytes.

    The writer holds the file open for appending, so its content is copied away and the file emptied in place.
    """
    if not path.exists() or path.stat().st_size <= limit:
        return
    _shift(path, keep)
    if keep:
        shutil.copyfile(path, _numbered(path, 1))
    with path.open("r+b") as file:
        file.truncate(0)


def last_line(path: Path) -> str:
    """The last line that says something, a JSON line by its message; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    spoken = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        record = json.loads(spoken)
    except ValueError:
        return spoken
    return str(record.get("message", spoken)) if isinstance(record, dict) else spoken


def _shift(path: Path, keep: int) -> None:
    for number in range(keep - 1, 0, -1):
        if _numbered(path, number).exists():
            _numbered(path, number).replace(_numbered(path, number + 1))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
