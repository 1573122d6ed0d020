"""The table: each row is a question to the results of the jobs, with the answer that is aimed at. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench.engine.rows import Measure, Pick, Results, Row, ratio
from bench.gateway.measures import MANY, OPEN, STREAMS


def most(job: str, value: str) -> Measure:
    """What is the better the more: of the rounds the largest, or their median."""
    return _of(job, value, max)


def least(job: str, value: str, scale: float = 1.0) -> Measure:
    """What is the better the less, times `scale`: of the rounds the smallest, or their median."""
    return lambda results, pick: scale * _of(job, value, min)(results, pick)


def added(value: str, over: str, under: str) -> Measure:
    """How many milliseconds more `over` takes."""
    return lambda results, pick: least(over, value, 1e3)(results, pick) - least(under, value, 1e3)(results, pick)


def held(job: str) -> Measure:
    """The part of the tokens due that came; a stream that was lost fails the job."""

    def measure(results: Results, pick: Pick) -> float:
        parts = [run["tokens"] / run["due"] for run in results[job]["runs"]]
        return float(min(parts) if pick == "best" else statistics.median(parts))

    return measure


def _of(job: str, value: str, best: Callable[[list[float]], float]) -> Measure:
    def measure(results: Results, pick: Pick) -> float:
        values = [run[value] for run in results[job]["runs"]]
        return float(best(values) if pick == "best" else statistics.median(values))

    return measure


PROXIED = f"forebay-{MANY}"
ROWS: tuple[Row, ...] = (
    Row(
        "litellm",
        f"proxied requests/s at {MANY} clients, vs LiteLLM's proxy",
        (PROXIED, f"litellm-{MANY}"),
        ratio(most(PROXIED, "rate"), most(f"litellm-{MANY}", "rate")),
        12,
        form="{:.1f}x",
    ),
    Row(
        "latency",
        "p50 at 1 client, more than nginx as a plain reverse proxy",
        ("forebay-1", "nginx-1"),
        added("p50", "forebay-1", "nginx-1"),
        1.0,
        at_most=True,
        form="{:.2f} ms",
    ),
    Row(
        "hits",
        "cache hits/s vs proxied requests/s",
        ("hits", PROXIED),
        ratio(most("hits", "rate"), most(PROXIED, "rate")),
        2,
    ),
    Row(
        "streams",
        f"{STREAMS} streams at 20 tokens/s: tokens that came, of those due",
        ("streams",),
        held("streams"),
        0.99,
        form="{:.1%}",
    ),
    Row(
        "jitter",
        f"{STREAMS} streams: a token's way from pod to client, p99",
        ("streams",),
        least("streams", "delay_p99", 1e3),
        25,
        at_most=True,
        form="{:.1f} ms",
    ),
    Row(
        "chunk",
        f"{STREAMS} streams: processor time of a chunk",
        ("streams",),
        least("streams", "cpu_per_chunk", 1e6),
        50,
        at_most=True,
        form="{:.1f} us",
    ),
    Row(
        "memory",
        f"memory of 1,000 open streams, measured with {OPEN}",
        ("memory",),
        least("memory", "memory_per_stream", 1000 / 1e6),
        60,
        at_most=True,
        form="{:.1f} MB",
    ),
    Row(
        "workers",
        "processor time of a request, two workers vs one",
        ("two workers", PROXIED),
        ratio(least("two workers", "cpu"), least(PROXIED, "cpu")),
        1.1,
        at_most=True,
    ),
    Row("rate", f"proxied requests/s at {MANY} clients", (PROXIED,), most(PROXIED, "rate"), form="{:.0f}"),
    Row("cpu", "processor time of a proxied request", (PROXIED,), least(PROXIED, "cpu", 1e6), form="{:.0f} us"),
    Row("hit-cpu", "processor time of a cache hit", ("hits",), least("hits", "cpu", 1e6), form="{:.0f} us"),
    Row("core", f"{STREAMS} streams: part of the core", ("streams",), least("streams", "cpu"), form="{:.0%}"),
)
