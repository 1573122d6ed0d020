"""What is rendered when its flag is on, is absent when the flag is off."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chart.rendering import CACHE, CHART, GATEWAY, MODEL, Release, model, render

ALWAYS = {
    "ConfigMap", "Deployment", "Job", "PersistentVolumeClaim", "Pod", "PodDisruptionBudget", "Role", "RoleBinding",
    "Secret", "Service", "ServiceAccount", "StatefulSet",
}  # fmt: skip


def with_model(**values: Any) -> Release:
    return render(values={**model(), **values})


def kinds(release: Release) -> set[str]:
    return {manifest["kind"] for manifest in release.manifests}


def test_by_default_there_is_only_what_any_cluster_knows() -> None:
    assert kinds(with_model()) == ALWAYS


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("HTTPRoute", {"route": {"enabled": True, "parentRefs": [{"name": "public"}]}}),
        ("Ingress", {"ingress": {"enabled": True, "hosts": ["llm.example.com"]}}),
        ("ServiceMonitor", {"observability": {"serviceMonitor": {"enabled": True}}}),
        ("PrometheusRule", {"observability": {"prometheusRule": {"enabled": True}}}),
        ("NetworkPolicy", {"networkPolicy": {"enabled": True}}),
    ],
)
def test_a_flag_adds_its_kind_and_no_other(kind: str, values: dict[str, Any]) -> None:
    assert kinds(with_model(**values)) == ALWAYS | {kind}


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        ("PodDisruptionBudget", GATEWAY, {"gateway": {"pdb": {"enabled": False}}}),
        ("ServiceAccount", GATEWAY, {"gateway": {"serviceAccount": {"create": False}}}),
        ("ServiceAccount", CACHE, {"redis": {"serviceAccount": {"create": False}}}),
        ("ServiceAccount", MODEL, model(serviceAccount={"create": False})),
        ("PersistentVolumeClaim", "forebay-database", {"database": {"sqlite": {"size": ""}}}),
        ("PersistentVolumeClaim", "forebay-database", {"database": {"sqlite": {"existingClaim": "mine"}}}),
        ("Secret", "forebay-secrets", {"secrets": {"existingSecret": "mine"}}),
        ("Role", "forebay-secrets", {"secrets": {"existingSecret": "mine"}}),
        ("RoleBinding", "forebay-secrets", {"secrets": {"existingSecret": "mine"}}),
        ("ServiceAccount", "forebay-secrets", {"secrets": {"existingSecret": "mine"}}),
        ("ConfigMap", "forebay-secrets", {"secrets": {"existingSecret": "mine"}}),
        ("StatefulSet", CACHE, {"redis": {"enabled": False, "external": {"url": "redis://mine:6379/0"}}}),
        ("Service", CACHE, {"redis": {"enabled": False, "external": {"url": "redis://mine:6379/0"}}}),
        ("ServiceAccount", CACHE, {"redis": {"enabled": False, "external": {"url": "redis://mine:6379/0"}}}),
    ],
)
def test_what_is_there_by_default_can_be_left_out(kind: str, name: str, values: dict[str, Any]) -> None:
    assert with_model().has(kind, name)
    assert not with_model(**values).has(kind, name)


def test_no_job_fills_in_a_secret_of_ones_own() -> None:
    assert with_model().of_kind("Job")
    assert not with_model(secrets={"existingSecret": "mine"}).of_kind("Job")


def test_a_model_has_a_budget_when_there_is_a_pod_to_spare() -> None:
    assert not with_model().has("PodDisruptionBudget", MODEL)
    assert render(values=model(replicas=2)).has("PodDisruptionBudget", MODEL)
    assert not render(values=model(replicas=2, pdb={"enabled": False})).has("PodDisruptionBudget", MODEL)


def test_a_model_that_is_turned_off_leaves_nothing() -> None:
    release = render("ci/many-models-values.yaml")
    assert not [one for one in release.manifests if "-off" in one["metadata"]["name"]]
    assert "-off" not in release.environment(GATEWAY)["FOREBAY_UPSTREAMS"]


def test_metrics_services_are_only_for_the_monitor_and_have_pods_that_load() -> None:
    assert not [one for one in with_model().of_kind("Service") if one["metadata"]["name"].endswith("-metrics")]
    release = render("ci/observability-values.yaml")
    monitor = release.one("ServiceMonitor")["spec"]
    found = [
        one for one in release.of_kind("Service")
        if monitor["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    ]  # fmt: skip
    assert {one["metadata"]["name"] for one in found} == {
        f"{name}-metrics" for name in (GATEWAY, MODEL, "forebay-model-big")
    }
    assert all(one["spec"]["publishNotReadyAddresses"] for one in found)
    assert all(one["spec"]["ports"][0]["name"] == monitor["endpoints"][0]["port"] for one in found)


def test_the_monitor_sets_the_label_that_dashboards_select_by_and_hides_none_of_the_metrics_own() -> None:
    (endpoint,) = render("ci/observability-values.yaml").one("ServiceMonitor")["spec"]["endpoints"]
    assert [rule["targetLabel"] for rule in endpoint["relabelings"]] == ["component"]


def test_the_dashboards_are_the_ones_of_grafana_byte_for_byte() -> None:
    release = render("ci/observability-values.yaml")
    files = {path.name: json.loads(path.read_text()) for path in (CHART / "files" / "dashboards").glob("*.json")}
    found = {
        name: json.loads(text)
        for one in release.of_kind("ConfigMap")
        if one["metadata"]["labels"].get("grafana_dashboard") == "1"
        for name, text in one["data"].items()
    }
    assert found == files != {}


def test_the_alerts_link_to_runbooks_where_the_values_say_they_are() -> None:
    release = render("ci/observability-values.yaml")
    text = json.dumps(release.one("PrometheusRule"))
    assert "https://example.com/forebay/docs/runbooks/" in text
    assert '"docs/runbooks/' not in text
    assert "{{ $labels" in text, "Prometheus' own templates must come through"


def test_linkerd_annotates_every_pod_that_speaks_to_another() -> None:
    release = render("ci/linkerd-values.yaml")
    for name in (GATEWAY, CACHE, MODEL, "forebay-smoke-test"):
        annotations = release.pod(name)["metadata"]["annotations"]
        assert annotations["linkerd.io/inject"] == "enabled"
        assert annotations["config.beta.linkerd.io/proxy-enable-native-sidecar"] == "true"
        assert annotations["config.linkerd.io/skip-inbound-ports"] == "9090"
    (job,) = release.of_kind("Job")
    assert job["spec"]["template"]["metadata"]["annotations"]["linkerd.io/inject"] == "disabled"


def test_without_linkerd_nothing_mentions_it() -> None:
    assert "linkerd" not in json.dumps(with_model().manifests)


def test_policies_let_in_only_the_arrows_of_the_architecture() -> None:
    release = render("ci/network-policy-values.yaml")
    rules = {one["metadata"]["name"]: one["spec"].get("ingress", []) for one in release.of_kind("NetworkPolicy")}
    assert rules["forebay-nobody"] == []
    for name in ("forebay-inference", CACHE):
        (peer,) = rules[name][0]["from"]
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert len(rules[GATEWAY][0]["from"]) == 2, "the named clients, and the pod of helm test"
    assert all("from" in rule for rule in rules[GATEWAY])


def test_a_gateway_that_is_held_back_reaches_what_it_needs_and_nothing_else() -> None:
    release = render("ci/discovery-values.yaml")
    (spec,) = [one["spec"] for one in release.of_kind("NetworkPolicy") if "egress" in one["spec"]]
    names, *inside, api, issuer, given = spec["egress"]
    assert {(port["port"], port.get("protocol", "TCP")) for port in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    found = {
        one["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: one["ports"][0]["port"]
        for one in inside
    }
    assert found == {"inference": 8000, "cache": 6379}
    assert [port["port"] for port in api["ports"]] == [443, 6443]
    assert [port["port"] for port in issuer["ports"]] == [8443, 443]
    assert given == {"to": [{"ipBlock": {"cidr": "10.0.0.7/32"}}], "ports": [{"port": 8000}]}
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_a_gateway_that_looks_names_up_and_knows_no_issuer_reaches_neither_api_server_nor_web() -> None:
    policy = {"enabled": True, "egress": {"restricted": True}}
    release = with_model(networkPolicy=policy)
    (spec,) = [one["spec"] for one in release.of_kind("NetworkPolicy") if "egress" in one["spec"]]
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 8000, 6379}


def test_the_caches_file_is_on_a_claim_or_on_an_empty_dir() -> None:
    (claim,) = with_model().one("StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert "storageClassName" not in claim["spec"]
    without = with_model(redis={"persistence": {"enabled": False, "size": "3Gi"}})
    assert "volumeClaimTemplates" not in without.one("StatefulSet")["spec"]
    assert {"name": "data", "emptyDir": {"sizeLimit": "3Gi"}} in without.pod(CACHE)["spec"]["volumes"]


def test_extra_objects_are_installed_with_their_templates_filled_in() -> None:
    assert render("ci/scheduling-values.yaml").one("ConfigMap", "forebay-extra")["data"] == {"key": "value"}
