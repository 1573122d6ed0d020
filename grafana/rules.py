"""Recording rules and alerts, as Prometheus reads them.

Every alert gets its severity, its texts and the address of its runbook page here, so that none can be forgotten.
"""

from __future__ import annotations

from typing import Any

from grafana import queries as q
from grafana.config import (
    AVAILABILITY_TARGET,
    PERIOD,
    TTFT_SECONDS,
    TTFT_TARGET,
    WINDOWS,
    Options,
    Window,
)

Rule = dict[str, Any]

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
IN = "{{ $labels.namespace }}"
"""Prometheus' template for the namespace, for texts."""


def groups(options: Options | None = None) -> dict[str, Any]:
    """The content of a rule file."""
    options = options or Options()
    burn_rates = [rule for window in MINUTES for rule in _burn_rates(window)]
    days = [*(rule for window in DAYS for rule in _burn_rates(window)), _burn_rates(PERIOD)[0]]
    return {
        "groups": [
            {"name": "forebay-records", "rules": [*_rates(), *burn_rates]},
            {"name": "forebay-records-days", "interval": options.slow_interval, "rules": days},
            {"name": "forebay-alerts", "rules": [*_faults(options), *_burns(options)]},
        ]
    }


def record(name: str, expression: str) -> Rule:
    return {"record": name, "expr": expression}


def alert(
    options: Options,
    name: str,
    expression: str,
    *,
    wait: str,
    severity: str,
    summary: str,
    description: str,
    **labels: str,
) -> Rule:
    """An alert; its runbook is the page that is named like it."""
    return {
        "alert": name,
        "expr": expression,
        "for": options.waits.get(name, wait),
        "labels": {"severity": severity, **labels},
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": runbook(name, options),
        },
    }


def runbook(name: str, options: Options) -> str:
    return f"{options.runbooks}docs/runbooks/{name}.md"


def _rates() -> list[Rule]:
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


def _burn_rates(window: str) -> tuple[Rule, Rule]:
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


def _faults(options: Options) -> list[Rule]:
    ready = q.select("forebay_gateway_upstreams_ready", q.GATEWAY)
    gateways = f"sum by (namespace) (up{{{q.GATEWAY}}} == 1)"
    return [
        alert(
            options,
            "ForebayNoReadyPod",
            # The second half: a gateway that has not seen any model since it started.
            f"max by (namespace, model) ({ready}) == 0\nor\n{gateways} unless on (namespace) {ready}",
            wait="2m",
            severity="critical",
            summary=f'No pod in {IN} is ready for {{{{ or $labels.model "any model" }}}}.',
            description="Every request for the model is answered 503 until a pod is ready again.",
        ),
        alert(
            options,
            "ForebayQueueGrowing",
            # Also true of a queue that has reached its end, where it can grow no more.
            f"min_over_time({WAITING}[10m]) > 0\nand\n{WAITING} >= ({WAITING} offset 10m)",
            wait="5m",
            severity="warning",
            summary=f"The queue for {{{{ $labels.model }}}} in {IN} does not get shorter.",
            description="{{ $value }} requests or more have waited at any time of the last ten minutes. "
            "More comes in than the pods can do; when the queue is full, callers get 429.",
        ),
        alert(
            options,
            "ForebayRedisDown",
            f"max by (namespace) ({q.select('forebay_gateway_redis_down', q.GATEWAY)}) == 1",
            wait="2m",
            severity="warning",
            summary=f"A gateway in {IN} cannot reach Redis.",
            description="Requests still flow: the response cache is off, and each gateway process holds the quotas "
            "by itself, without knowing of the others.",
        ),
        *(
            alert(
                options,
                "ForebayMetricsAbsent",
                f'absent(up{{component="{component}"}} == 1)',
                wait="10m",
                severity="critical",
                summary=f"Prometheus reads no {word}.",
                description=f"No target with component={component} answers. Either none runs, or the scrape "
                "configuration no longer finds them; the other alerts see nothing meanwhile.",
                component=component,
            )
            for component, word in (("gateway", "gateway"), ("inference", "inference pod"))
        ),
    ]


def _burns(options: Options) -> list[Rule]:
    rules = []
    for window in WINDOWS:
        rules.append(
            alert(
                options,
                "ForebayErrorBudgetBurn",
                _burning(AVAILABILITY, window),
                wait=window.wait,
                severity=window.severity,
                summary=f"Requests in {IN} fail {window.factor:g} times faster than the objective allows.",
                description=f"{_percent(1 - AVAILABILITY_TARGET)} of the requests may fail over {PERIOD}. Over "
                f"{window.long} the budget burnt at {{{{ $value | humanize }}}} times that pace.",
                long=window.long,
                short=window.short,
            )
        )
        rules.append(
            alert(
                options,
                "ForebayTTFTBudgetBurn",
                _burning(LATENCY, window),
                wait=window.wait,
                severity=window.severity,
                summary=f"First tokens of {{{{ $labels.model }}}} in {IN} come late.",
                description=f"{_percent(TTFT_TARGET)} of the streams should start within {TTFT_SECONDS:g} s. Over "
                f"{window.long} the budget burnt at {{{{ $value | humanize }}}} times the pace that this allows.",
                long=window.long,
                short=window.short,
            )
        )
    return rules


def _burning(series: str, window: Window) -> str:
    over = f"> {window.factor:g}"
    return f"{series}{window.long} {over}\nand\n{series}{window.short} {over}"


def _percent(part: float) -> str:
    return f"{part * 100:.4g}%"
