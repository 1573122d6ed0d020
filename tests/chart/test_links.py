"""Things fit together: selectors find pods, Services reach ports, and whatever is named exists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from services.common.settings import ALL, is_secret
from services.gateway.upstreams.resolve import KUBERNETES_PREFIX
from services.gateway.upstreams.slices import ACCOUNT, PORT_NAME
from tests.chart.rendering import COMBINATIONS, PRESETS, Manifest, Release, containers, render

EVERY = (*PRESETS, *COMBINATIONS)
SETTINGS = {f"FOREBAY_{name.upper()}": field for kind in ALL for name, field in kind.model_fields.items()}
URLS = {"FOREBAY_REDIS_URL", "FOREBAY_DATABASE_URL"}
"""Settings that may hold a password, and so come from files too."""
OF_THE_CACHE = {"FOREBAY_CACHE_DIR"}
"""What the script reads that starts Valkey in its image."""
GIVEN = "outside"
"""How the combinations begin the names of what is in the cluster already."""
OTHERS = {"kube-root-ca.crt", "forebay-database"}
"""The cluster's own authority, which is in every namespace, and what the production preset asks its user to make."""

every = pytest.mark.parametrize("file", EVERY)


def matches(selector: dict[str, str], pod: Manifest) -> bool:
    return bool(selector.items() <= pod["metadata"]["labels"].items())


def mentions(value: Any, key: str) -> Iterator[Any]:
    """Everything under a key of that name, however deep."""
    if isinstance(value, dict):
        for name, content in value.items():
            if name == key:
                yield content
            yield from mentions(content, key)
    elif isinstance(value, list):
        for content in value:
            yield from mentions(content, key)


@every
def test_a_workload_finds_its_own_pods_and_no_others(file: str) -> None:
    release = render(file)
    for workload in release.of_kind("Deployment", "StatefulSet"):
        selector = workload["spec"]["selector"]["matchLabels"]
        found = [name for name, pod in release.pods() if matches(selector, pod)]
        assert found == [workload["metadata"]["name"]]
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & selector.keys()


@every
def test_a_service_reaches_a_port_of_the_pods_it_selects(file: str) -> None:
    release = render(file)
    for service in release.of_kind("Service"):
        pods = [pod for _, pod in release.pods() if matches(service["spec"]["selector"], pod)]
        assert len(pods) == 1, service["metadata"]["name"]
        names = {port["name"] for one in containers(pods[0]) for port in one.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


@every
def test_probes_ask_ports_that_are_there(file: str) -> None:
    for _, pod in render(file).pods():
        for container in containers(pod):
            names = {port["name"] for port in container.get("ports", [])}
            assert {get["port"] for get in mentions(container, "httpGet")} <= names


@every
def test_budgets_and_policies_select_pods_that_are_there(file: str) -> None:
    release = render(file)
    pods = [pod for _, pod in release.pods()]
    for one in release.of_kind("PodDisruptionBudget", "NetworkPolicy"):
        selector = one["spec"].get("selector", one["spec"].get("podSelector"))
        assert any(matches(selector["matchLabels"], pod) for pod in pods), one["metadata"]["name"]


@every
def test_spread_is_over_the_pods_of_the_same_workload(file: str) -> None:
    for name, pod in render(file).pods():
        for spread in pod["spec"].get("topologySpreadConstraints", []):
            own = matches(spread["labelSelector"]["matchLabels"], pod)
            assert own or spread["topologyKey"] == "rack", name


@every
def test_what_a_pod_mounts_or_reads_exists(file: str) -> None:
    release = render(file)
    for name, pod in release.pods():
        spec = pod["spec"]
        named = [("ConfigMap", one["name"]) for one in mentions(spec, "configMap")]
        named += [("ConfigMap", one["name"]) for one in mentions(spec, "configMapRef")]
        named += [("Secret", one["secretName"]) for one in mentions(spec, "secret")]
        named += [("Secret", one["name"]) for one in mentions(spec, "secretRef")]
        named += [("PersistentVolumeClaim", one["claimName"]) for one in mentions(spec, "persistentVolumeClaim")]
        named.append(("ServiceAccount", spec["serviceAccountName"]))
        ours = [(kind, one) for kind, one in named if not one.startswith(GIVEN) and one not in OTHERS]
        absent = [(kind, one) for kind, one in ours if not release.has(kind, one)]
        assert absent in ([], [("ServiceAccount", "default")]), name
        workload = next((one for one in release.of_kind("StatefulSet") if one["metadata"]["name"] == name), {})
        claimed = {one["metadata"]["name"] for one in workload.get("spec", {}).get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in spec["volumes"]} | claimed
        mounts = {mount["name"] for one in containers(pod) for mount in one["volumeMounts"]}
        assert mounts == volumes, name


@every
def test_claims_that_are_made_are_used(file: str) -> None:
    release = render(file)
    used = {one["claimName"] for _, pod in release.pods() for one in mentions(pod, "persistentVolumeClaim")}
    assert {one["metadata"]["name"] for one in release.of_kind("PersistentVolumeClaim")} <= used


@every
def test_the_job_makes_every_key_that_pods_wait_for(file: str) -> None:
    release = render(file)
    if not release.of_kind("Job"):
        return
    command = release.of_kind("Job")[0]["spec"]["template"]["spec"]["containers"][0]["command"]
    made = {argument.partition("=")[2] for argument in command}
    for _, pod in release.pods():
        for secret in mentions(pod["spec"], "secret"):
            if secret["secretName"] == release.one("Secret")["metadata"]["name"]:
                assert {item["key"] for item in secret["items"]} <= made


@every
def test_every_setting_is_one_that_the_services_have(file: str) -> None:
    release = render(file)
    names = {variable for name, _ in release.pods() for variable in release.environment(name)}
    for variable in (name for name in names - OF_THE_CACHE if name.startswith("FOREBAY_")):
        setting = variable.removesuffix("_FILE") if variable not in SETTINGS else variable
        assert setting in SETTINGS, variable
        assert setting == variable or setting in URLS or is_secret(SETTINGS[setting]), variable


@every
def test_settings_that_are_files_are_mounted(file: str) -> None:
    release = render(file)
    files = {
        f"{mount['mountPath']}/{item['path']}"
        for mount in release.container(release.gateway())["volumeMounts"]
        for volume in release.pod(release.gateway())["spec"]["volumes"]
        if volume["name"] == mount["name"]
        for item in volume.get("secret", {}).get("items", [])
    }
    for container in containers(release.pod(release.gateway())):
        assert {word.partition("=")[2] for word in container.get("command", []) if "/run/secrets" in word} <= files
    for variable, value in release.environment(release.gateway()).items():
        if variable.endswith("_FILE"):
            assert value in files


@every
def test_the_gateway_asks_every_model_by_the_name_of_its_service(file: str) -> None:
    release = render(file)
    asked = release.environment(release.gateway())["FOREBAY_UPSTREAMS"].split(",")
    if asked[0].startswith(KUBERNETES_PREFIX):
        return
    headless = [
        f"dns+http://{one['metadata']['name']}:{one['spec']['ports'][0]['port']}"
        for one in release.of_kind("Service")
        if one["metadata"]["name"].endswith("-pods")
    ]
    assert len(headless) == len(
        [one for one in release.of_kind("Deployment") if "forebay.dev/model" in one["metadata"]["labels"]]
    )
    assert asked[: len(headless)] == headless
    for service in release.of_kind("Service"):
        if service["metadata"]["name"].endswith("-pods"):
            assert service["spec"]["clusterIP"] == "None"
            assert service["spec"]["publishNotReadyAddresses"] is False


@every
def test_the_gateway_watches_the_slices_of_every_model_and_no_others(file: str) -> None:
    """Slices have the labels of their Service."""
    release = render(file)
    entry = release.environment(release.gateway())["FOREBAY_UPSTREAMS"].split(",")[0]
    if not entry.startswith(KUBERNETES_PREFIX):
        assert not release.has("Role", release.gateway())
        return
    url = urlsplit(entry.removeprefix(KUBERNETES_PREFIX))
    (selector,) = parse_qs(url.query)["labelSelector"]
    found = [one for one in release.of_kind("Service") if selected(selector, one["metadata"]["labels"])]
    names = {one["metadata"]["name"] for one in found}
    assert names == {
        one["metadata"]["name"] for one in release.of_kind("Service") if "-pods" in one["metadata"]["name"]
    }
    assert [one["spec"]["ports"][0]["name"] for one in found] == [PORT_NAME] * len(names)
    assert not selected(selector, {**found[0]["metadata"]["labels"], "app.kubernetes.io/instance": "another"})
    (role,) = [one for one in release.of_kind("Role") if one["metadata"]["name"] == release.gateway()]
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    ]
    assert role["metadata"]["namespace"] == url.hostname
    binding = release.one("RoleBinding", release.gateway())
    assert [one["name"] for one in binding["subjects"]] == [
        release.pod(release.gateway())["spec"]["serviceAccountName"]
    ]


def selected(selector: str, labels: dict[str, str]) -> bool:
    """Whether a label selector in the API's own words finds an object."""

    def holds(term: str) -> bool:
        key, equals, value = term.lstrip("!").partition("=")
        return labels.get(key) == value if equals else (key in labels) is not term.startswith("!")

    return all(holds(term) for term in selector.split(","))


@every
def test_only_a_gateway_that_watches_has_a_token(file: str) -> None:
    release = render(file)
    watches = release.environment(release.gateway())["FOREBAY_UPSTREAMS"].startswith(KUBERNETES_PREFIX)
    with_token = {name for name, pod in release.pods() if list(mentions(pod["spec"], "serviceAccountToken"))}
    jobs = {one["metadata"]["name"] for one in release.of_kind("Job")}
    assert with_token == jobs | ({release.gateway()} if watches else set())
    assert all(pod["spec"]["automountServiceAccountToken"] is False for _, pod in release.pods())
    (bootstrap,) = release.pod(release.gateway())["spec"]["initContainers"]
    assert "kubernetes" not in {mount["name"] for mount in bootstrap["volumeMounts"]}
    if watches:
        mounts = {mount["name"]: mount["mountPath"] for mount in release.container(release.gateway())["volumeMounts"]}
        assert mounts["kubernetes"] == str(ACCOUNT)


@every
def test_the_cache_writes_its_file_to_a_volume_of_its_own(file: str) -> None:
    release = render(file)
    for workload in release.of_kind("StatefulSet"):
        name = workload["metadata"]["name"]
        mounts = {mount["mountPath"]: mount["name"] for mount in release.container(name)["volumeMounts"]}
        assert mounts[release.environment(name)["FOREBAY_CACHE_DIR"]] == "data"
        assert release.pod(name)["spec"]["securityContext"]["fsGroup"] == 65532


@every
def test_the_smoke_test_asks_the_gateway_for_models_that_are_served(file: str) -> None:
    release = render(file)
    command = release.one("Pod")["spec"]["containers"][0]["command"]
    options = [word.partition("=")[::2] for word in command if word.startswith("--")]
    (url,) = [value for key, value in options if key == "--url"]
    gateway = next(one for one in release.of_kind("Service") if one["metadata"]["name"].endswith("-gateway"))
    assert url == f"http://{gateway['metadata']['name']}:{gateway['spec']['ports'][0]['port']}"
    served = [release.environment(name).get("FOREBAY_MODEL", "").partition("=")[0] for name, _ in release.pods()]
    assert {value for key, value in options if key == "--model"} <= {*served, *vllm_names(release)}


def vllm_names(release: Release) -> list[str]:
    texts = [json.dumps(pod["spec"]["containers"][0].get("args", [])) for _, pod in release.pods()]
    return [text.partition("--served-model-name=")[2].partition('"')[0] for text in texts if "--served-model" in text]
