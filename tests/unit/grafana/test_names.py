"""Every series that a panel or a rule names exists, and says whose it is."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry

from grafana.config import TTFT_SECONDS
from grafana.generate import boards
from grafana.rules import groups
from services.common.metrics import TTFT_BUCKETS, EngineMetrics, GatewayMetrics
from tests.unit.grafana.promql import names, rules_of, selectors, targets_of

OTHERS = re.compile(r"up|(flask|python|process|kube)_\w+")
"""Exported by something else: Prometheus itself, prometheus-flask-exporter, prometheus-client, kube-state-metrics."""

RULES = rules_of(groups())
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
BOARDS = boards()
EXPRESSIONS = {f"{title}: {n}": text for board in BOARDS for n, (title, text) in enumerate(targets_of(board))}
EXPRESSIONS |= {f"{rule.get('record') or rule['alert']} {n}": rule["expr"] for n, rule in enumerate(RULES)}
VARIABLES = {
    f"{board['uid']} {variable['name']}": str(variable["query"])
    for board in BOARDS
    for variable in board["templating"]["list"]
}
OF_TARGETS = {"component", "namespace", "pod", "le"}
"""Labels that every target has, and a histogram's own."""


def declared(kind: type[GatewayMetrics] | type[EngineMetrics]) -> dict[str, set[str]]:
    """The metrics, each with its labels."""
    found = {}
    for collector in vars(kind(CollectorRegistry())).values():
        metric = collector.describe()[0]
        found[f"{metric.name}_total" if metric.type == "counter" else metric.name] = set(collector._labelnames)
    return found


OWNERS = {"gateway": declared(GatewayMetrics), "inference": declared(EngineMetrics)}


@pytest.mark.parametrize("expression", {**EXPRESSIONS, **VARIABLES}.values(), ids={**EXPRESSIONS, **VARIABLES})
def test_every_series_is_declared_or_recorded(expression: str) -> None:
    known = OWNERS["gateway"].keys() | OWNERS["inference"].keys() | RECORDED
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


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_label_is_one_that_the_metric_has(expression: str) -> None:
    """Whatever is summed by a label that is not there, or matched by it, shows one curve without a name, or none."""
    labels: set[str] = set()
    for metric, matchers in selectors(expression):
        of = OWNERS["gateway"].get(metric, set()) | OWNERS["inference"].get(metric, set())
        if metric in OWNERS["gateway"] or metric in OWNERS["inference"]:
            assert set(re.findall(r"(\w+)[=!]~?\"", matchers)) <= of | OF_TARGETS
            labels |= of
    if labels:
        by = {name.strip() for names in re.findall(r" by \(([^)]*)\)", expression) for name in names.split(",")}
        assert by <= labels | OF_TARGETS


def test_every_recorded_series_is_used() -> None:
    used = set().union(*(names(text) for text in EXPRESSIONS.values()))
    assert RECORDED - used == set()


def test_the_objective_lies_on_a_bucket() -> None:
    assert TTFT_SECONDS in TTFT_BUCKETS
