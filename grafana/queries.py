"""The PromQL that rules and panels are put together from.

Gateways and pods export histograms of the same name, each as it sees the request, so every selector here names one
`component`: the label that the scrape configuration gives each target (see README.md).
"""

from __future__ import annotations

GATEWAY = 'component="gateway"'
INFERENCE = 'component="inference"'

TTFT = "gen_ai_server_time_to_first_token_seconds"
DURATION = "gen_ai_server_request_duration_seconds"
TOKEN_TIME = "gen_ai_server_time_per_output_token_seconds"  # noqa: S105

BROKEN = "overloaded|timeout|upstream_error|error"
"""Outcomes that count against the service."""


def select(metric: str, *matchers: str) -> str:
    """A selector; empty matchers are left out."""
    return f"{metric}{{{','.join(matcher for matcher in matchers if matcher)}}}"


def rate(metric: str, window: str, *matchers: str) -> str:
    return f"rate({select(metric, *matchers)}[{window}])"


def total(by: str, expression: str) -> str:
    return f"sum by ({by}) ({expression})"


def quantile(quantity: float, by: str, metric: str, window: str, *matchers: str) -> str:
    """A quantile of a histogram, over all of its targets together."""
    return f"histogram_quantile({quantity:g}, {total(f'{by}, le', rate(f'{metric}_bucket', window, *matchers))})"
