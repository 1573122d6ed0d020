"""The registry of metrics: names and labels that dashboards can rely on."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.metrics import EngineMetrics, GatewayMetrics, HttpMetrics


def collectors() -> list[Any]:
    return [found for kind in (GatewayMetrics, EngineMetrics) for found in vars(kind(CollectorRegistry())).values()]


@pytest.mark.parametrize("collector", collectors(), ids=lambda collector: collector._name)
def test_a_name_is_ours_or_opentelemetrys(collector: Any) -> None:
    assert re.fullmatch(r"(forebay_(gateway|engine)|gen_ai)_[a-z_]+", collector._name)


@pytest.mark.parametrize("collector", collectors(), ids=lambda collector: collector._name)
def test_labels_are_of_the_bounded_kinds(collector: Any) -> None:
    assert set(collector._labelnames) <= {
        "model",
        "tenant",
        "outcome",
        "token_type",
        "result",
        "cause",
        "account",
        "phase",
        "period",
        "policy",
        "source",
        "watched_namespace",
    }


def test_a_time_is_in_seconds() -> None:
    timed = [found._name for found in collectors() if "time" in found._name or "duration" in found._name]
    assert all(name.endswith("_seconds") for name in timed)


def test_http_requests_are_counted_by_rule_and_status() -> None:
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)
    # Where values are files of a process, the status is one that no other test has counted.
    for _ in range(2):
        metrics.count("GET", "/things/<name>", 299, 0.5)
    labels = {"method": "GET", "status": "299"}
    assert registry.get_sample_value("flask_http_request_total", labels) == 2
    of_rule = {**labels, "url_rule": "/things/<name>"}
    assert registry.get_sample_value("flask_http_request_duration_seconds_sum", of_rule) == 1.0


def test_a_method_that_a_client_made_up_is_no_label_of_its_own() -> None:
    registry = CollectorRegistry()
    HttpMetrics(registry).count("BREW", "unknown", 298, 0.1)
    assert registry.get_sample_value("flask_http_request_total", {"method": "other", "status": "298"}) == 1
