"""Where the processor time of a request or a chunk goes, step by step: samples of py-spy, sorted by their stacks.

A sample belongs to the first step of the table that has a frame in its stack. py-spy stops the process for each sample,
so the shares are right and the absolute time is taken from a run without it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.gateway.servers import RIVALS, Failed, Server
from bench.machine import family

SAMPLES = 250
"""A second."""

STEPS: tuple[tuple[str, str], ...] = (
    ("ledger: from Redis to SQL", r"ledger/writer\.py|_WorkerGreenlet"),
    ("background: looks at pods, heartbeat, reaper", r"^Thread\._bootstrap|upstreams/(discover|look)|processes\.py"),
    ("access log line", r"log_request .*edge\.py"),
    ("hit: exchange with Redis", r"Quotas\.hit "),
    ("hit: the rest", r"Front\._(answer|end) .*recall/known\.py"),
    ("settle: exchange with Redis", r"Quotas\.settle "),
    ("settle: entry, metrics, answer to keep", r"^(settle|_close_books) .*gateway/settle\.py"),
    ("admit: exchange with Redis", r"Quotas\.reserve "),
    ("admit: key of the answer, estimate of tokens", r"^admit .*gateway/admit\.py"),
    ("identify", r"Identifier\.identify "),
    ("dispatch: exchange with the pod", r"Exchange\.|upstreams/exchange\.py"),
    ("relay: events and notes", r"sse\.py|^observe |^relay "),
    ("dispatch: choice, body", r"^dispatch .*dispatch\.py"),
    ("recall", r"gateway/recall/(?!known)"),  # which all that Flask does lies behind
    ("request read and validated", r"^(read_call|parse_json) "),
    ("edge: ids, HTTP metrics", r"^(_open|_close) .*edge\.py"),
    ("gunicorn: answer written", r"Response\.(write|close|send_headers|start_response) .*gunicorn|write_chunk "),
    ("gunicorn: request parsed", r"Parser\.__next__ .*gunicorn|^create .*gunicorn|Body\.|default_environ "),
    ("Flask, Werkzeug", r"flask/app\.py|werkzeug/"),
    ("gunicorn: the rest", r"gunicorn/"),
    ("gevent's loop", r""),
)
_FRAMES = [(name, re.compile(pattern)) for name, pattern in STEPS]
_WAITS = re.compile(r"acquire_with_timeout |Queue\.get \(gevent/_threading")
"""Threads of gevent's pool that have nothing to do."""


def record(server: Server, seconds: float, *, settle: float) -> Counter[str]:
    """Samples by step, of the server's first worker, after `settle` seconds in which the load comes up.

    Raises:
        Failed: py-spy is not installed, or may not look into the process.
    """
    program = RIVALS / "py-spy"
    if not program.exists():
        raise Failed("not installed: make bench-gateway-rivals")
    worker = family(server.pid)[1]
    time.sleep(settle)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        argv = [str(program), "record", "--pid", str(worker), "--duration", str(round(seconds)), "--rate", str(SAMPLES)]
        done = subprocess.run([*argv, "--format", "raw", "--output", str(raw)], capture_output=True, check=False)
        if done.returncode:
            raise Failed(done.stderr.decode(errors="replace").strip() or "py-spy failed")
        return sort(raw.read_text().splitlines())


def sort(samples: Iterable[str]) -> Counter[str]:
    """Samples by step; each line is a stack, outermost frame first, `;` between frames, and how often it was seen."""
    found: Counter[str] = Counter()
    for sample in samples:
        stack, _, count = sample.rpartition(" ")
        frames = stack.split(";")
        if not any(_WAITS.search(frame) for frame in frames):
            found[_step(frames)] += int(count)
    return found


def table(found: Counter[str], microseconds: float) -> str:
    """The steps with their part of so many microseconds, the longest first."""
    total = sum(found.values()) or 1
    lines = [f"{name:<46} {microseconds * count / total:6.0f} us" for name, count in found.most_common()]
    return "\n".join([*lines, f"{'all':<46} {microseconds:6.0f} us"])


def _step(frames: list[str]) -> str:
    return next(name for name, pattern in _FRAMES if any(pattern.search(frame) for frame in frames))
