"""Recorded series: what the objectives count, and how fast their budgets burn."""

from __future__ import annotations

from grafana import queries as q
from grafana.alerts import Rule
from grafana.config import AVAILABILITY_TARGET, TTFT_SECONDS, TTFT_TARGET

REQUESTS = "namespace:forebay_requests:rate5m"
FAILED = "namespace:forebay_requests_failed:rate5m"
STREAMS = "namespace_model:forebay_streams:rate5m"
SLOW_STREAMS = "namespace_model:forebay_streams_slow:rate5m"
WAITING = "namespace_model:forebay_engine_requests_waiting:sum"
AVAILABILITY = "namespace:forebay_availability:burnrate"
LATENCY = "namespace_model:forebay_ttft:burnrate"
"""Of these two there is one series for each window, whose name ends with it."""
MINUTES = ("5m", "30m", "1h", "2h", "6h")
DAYS = ("1d", "3d")


def record(name: str, expression: str) -> Rule:
    return {"record": name, "expr": expression}


def rates() -> list[Rule]:
    """What the objectives count, a second over five minutes; each rule may use those before it."""
    ended = "forebay_gateway_requests_total"
    broken = q.total("namespace", q.rate(ended, "5m", q.GATEWAY, f'outcome=~"{q.BROKEN}"'))
    streams = q.total("namespace, model", q.rate(f"{q.TTFT}_count", "5m", q.GATEWAY))
    quick = q.total("namespace, model", q.rate(f"{q.TTFT}_bucket", "5m", q.GATEWAY, f'le="{TTFT_SECONDS}"'))
    waiting = q.total("namespace, model", q.select("forebay_engine_requests_waiting", q.INFERENCE))
    return [
        record(REQUESTS, q.total("namespace", q.rate(ended, "5m", q.GATEWAY))),
        record(FAILED, f"{broken}\nor 0 * {REQUESTS}"),
        record(STREAMS, streams),
        record(SLOW_STREAMS, f"{STREAMS} - {quick}"),
        record(WAITING, waiting),
    ]


def burn_rates(window: str) -> tuple[Rule, Rule]:
    """How many times too fast each budget is being used up: 1 is just the pace that `PERIOD` allows."""
    return (
        record(f"{AVAILABILITY}{window}", _ratio(FAILED, REQUESTS, window, AVAILABILITY_TARGET)),
        record(f"{LATENCY}{window}", _ratio(SLOW_STREAMS, STREAMS, window, TTFT_TARGET)),
    )


def _ratio(part: str, whole: str, window: str, target: float) -> str:
    budget = f"{1 - target:.6g}"
    if window == "5m":  # the rates are of five minutes themselves
        return f"{part} / {whole} / {budget}"
    return f"sum_over_time({part}[{window}]) / sum_over_time({whole}[{window}]) / {budget}"
