"""Recording rules and alerts, as Prometheus reads them, and the alerts on objectives that are missed."""

from __future__ import annotations

from typing import Any

from grafana.alerts import IN, Rule, alert
from grafana.config import AVAILABILITY_TARGET, PERIOD, TTFT_SECONDS, TTFT_TARGET, WINDOWS, Options, Window
from grafana.faults import books, faults, routes
from grafana.records import AVAILABILITY, DAYS, LATENCY, MINUTES, burn_rates, rates


def groups(options: Options | None = None) -> dict[str, Any]:
    """The content of a rule file."""
    options = options or Options()
    minutes = [rule for window in MINUTES for rule in burn_rates(window)]
    days = [*(rule for window in DAYS for rule in burn_rates(window)), burn_rates(PERIOD)[0]]
    alerts = [*faults(options), *routes(options), *books(options), *_burns(options)]
    return {
        "groups": [
            {"name": "forebay-records", "rules": [*rates(), *minutes]},
            {"name": "forebay-records-days", "interval": options.slow_interval, "rules": days},
            {"name": "forebay-alerts", "rules": alerts},
        ]
    }


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
