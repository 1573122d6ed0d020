"""Ids that are never given out twice, by whatever process, and sort by the time they were made."""

from __future__ import annotations

import secrets
import time


def new_id() -> str:
    """Sixteen hex digits of nanoseconds, then 48 random bits: 28 characters."""
    return f"{time.time_ns():016x}{secrets.token_hex(6)}"
