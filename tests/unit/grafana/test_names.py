"""Every series that a panel or a rule names exists, and says whose it is."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry

from grafana.config import TTFT_SECONDS
from grafana.overview import overview
from grafana.rules import groups
from services.common.metrics import TTFT_BUCKETS, EngineMetrics, GatewayMetrics
from tests.unit.grafana.promql import names, rules_of, selectors, targets_of

OTHERS = re.compile(r"up|(flask|python|process|kube)_\w+")
"""Exported by something else: Prometheus itself, prometheus-flask-exporter, prometheus-client, kube-state-metrics."""

RULES = rules_of(groups())
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
EXPRESSIONS = {f"{title}: {number}": text for number, (title, text) in enumerate(targets_of(overview()))}
EXPRESSIONS |= {f"{rule.get('record') or rule['alert']} {n}": rule["expr"] for n, rule in enumerate(RULES)}
VARIABLES = {variable["name"]: str(variable["query"]) for variable in overview()["templating"]["list"]}


def declared(kind: type[GatewayMetrics] | type[EngineMetrics]) -> set[str]:
    described = [collector.describe()[0] for collector in vars(kind(CollectorRegistry())).values()]
    return {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in described}


OWNERS = {"gateway": declared(GatewayMetrics), "inference": declared(EngineMetrics)}


@pytest.mark.parametrize("expression", {**EXPRESSIONS, **VARIABLES}.values(), ids={**EXPRESSIONS, **VARIABLES})
def test_every_series_is_declared_or_recorded(expression: str) -> None:
    known = OWNERS["gateway"] | OWNERS["inference"] | RECORDED
    assert {name for name in names(expression) if name not in known and not OTHERS.fullmatch(name)} == set()


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_selector_names_the_component_that_exports_the_metric(expression: str) -> None:
    """Both export histograms of the same name: without it, a request would be counted once at each."""
    for metric, matchers in selectors(expression):
        if metric in RECORDED or metric.startswith("kube_"):
            continue
        component = re.search(r'component="(\w+)"', matchers)
        assert component, f"{metric} without a component"
        assert metric in OWNERS[component[1]] or OTHERS.fullmatch(metric)


def test_every_recorded_series_is_used() -> None:
    used = set().union(*(names(text) for text in EXPRESSIONS.values()))
    assert RECORDED - used == set()


def test_the_objective_lies_on_a_bucket() -> None:
    assert TTFT_SECONDS in TTFT_BUCKETS
