"""One process of the stack: what it is, how it stands, and its row in the status file."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forebay.probe import Probe
from forebay.restart import Record

State = Literal["starting", "ready", "unready", "restarting", "stopping", "stopped", "failed"]


@dataclass(frozen=True)
class Spec:
    """One process to be kept running."""

    role: str
    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    probe: Probe
    log: Path
    url: str
    metrics_url: str | None = None
    cwd: Path | None = None


@dataclass
class Child:
    """A process that is kept running, and its life so far. Times without a word on it are of the monotonic clock."""

    spec: Spec
    process: subprocess.Popen[bytes] | None = None
    state: State = "starting"
    detail: str = ""
    models: tuple[str, ...] = ()
    since: float = field(default_factory=time.time)
    """When it came into this state, as a Unix time."""
    record: Record = field(default_factory=Record)
    ready_since: float | None = None
    was_ready: bool = False
    verdict: str = ""
    """Why the supervisor itself ended it."""
    misses: int = 0
    due: float = 0.0
    """When to look at it, or start it, next."""


def describe(child: Child) -> dict[str, Any]:
    """A child as a row of the status file."""
    return {
        "role": child.spec.role,
        "name": child.spec.name,
        "pid": child.process.pid if child.process else None,
        "url": child.spec.url,
        "metrics_url": child.spec.metrics_url,
        "state": child.state,
        "detail": child.detail,
        "restarts": child.record.restarts,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(child.since)),
    }
