"""What is written down of each call, and the stream in Redis in which it waits for SQL.

`settle.lua` adds an entry in the same round trip that settles the quotas, so that a call is in the ledger exactly
when it is settled. The stream has no expiry and nothing trims it: an entry leaves it when SQL has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

STREAM = "forebay:ledger"
"""Key of the stream that `settle.lua` adds to."""
_FIELD = "entry"


@dataclass(frozen=True)
class Entry:
    """One call, as it ended. Money is in whole micro-units of the currency, times in milliseconds."""

    id: str
    """The gateway's own id of the call, never given twice: what makes each call one row, however often it is sent."""
    request_id: str
    """The client's `X-Request-Id`, which may repeat."""
    tenant: str
    tenant_id: str
    subject: str
    """Whose call: `key:<id>`, `user:<id>`, `oidc:<hash>`."""
    model: str
    kind: str
    """`chat`, `text`, …"""
    outcome: str
    """How it ended, as the metrics name it; `gateway_lost` where the gateway died and no pod knew the end."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt that a pod's prefix cache spared."""
    completion_tokens: int = 0
    started_ms: int = 0
    """Unix time at arrival."""
    duration_ms: int = 0
    ttft_ms: int | None = None
    """Arrival to first token; None where there was none."""
    compute_seconds: float | None = None
    """The call's part of the time that the pods' steps took; None where the engine doesn't tell."""
    energy_joules: float | None = None
    upstream: str = ""
    """The pod that ended it; empty where none was asked."""
    cost_micros: int = 0
    saved_micros: int = 0
    """What the answer would have cost, had it not been in the response cache."""
    cache: str = ""
    """`hit`, `miss`, `bypass`, …"""
    retries: int = 0
    resumes: int = 0
    route: str = ""
    """Why it went there, as `X-Forebay-Route` says it."""

    def fields(self) -> list[str]:
        """Names and values in turn, as XADD takes them. One field of JSON: half the work of one for each, for both
        sides, and a gateway of another version reads what it knows of it."""
        return [_FIELD, json.dumps(self.__dict__, separators=(",", ":"))]

    @classmethod
    def of(cls, fields: Mapping[Any, Any]) -> Entry:
        """The entry that `fields` made, also by a gateway of another version.

        Raises:
            ValueError: it is none.
        """
        raw = fields.get(_FIELD.encode(), fields.get(_FIELD))
        try:
            said = json.loads(raw)
            return cls(**{name: value for name, value in said.items() if name in _NAMES})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not an entry of the ledger: {error}") from error


_NAMES = frozenset(field.name for field in fields(Entry))
