"""The plain manifests: every folder builds, Kubernetes knows every object, what must fit together does."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"
FOLDERS = sorted(
    str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml") if path.parent.name != "base"
)
PLUGINS = ["device-plugin/mig", "device-plugin/plain", "device-plugin/time-sliced"]
RENDERED = ["rendered/cpu-demo", "rendered/production"]
VERSIONS = ["1.31", kubernetes_validate.latest_version()]
BY_OTHERS = {"HTTPRoute", "PrometheusRule", "ServiceMonitor"}
"""Kinds that an operator brings, which the chart's own tests validate."""
WORKLOADS = {"DaemonSet", "Deployment", "Job", "StatefulSet"}

RENDER = runpy.run_path(str(K8S / "render.py"))

Manifest = dict[str, Any]
Build = Callable[[str], list[Manifest]]


@pytest.fixture(scope="session")
def build(tool: Callable[[str], str]) -> Build:
    """What `kubectl apply -k` of a folder would send."""
    built: dict[str, list[Manifest]] = {}

    def kustomize(folder: str) -> list[Manifest]:
        if folder not in built:
            command = [tool("kubectl"), "kustomize", str(K8S / folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert "deprecated" not in done.stderr.lower()
            built[folder] = list(yaml.safe_load_all(done.stdout))
        return built[folder]

    return kustomize


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_one_that_kubernetes_knows(folder: str, version: str, build: Build) -> None:
    for manifest in build(folder):
        if manifest["kind"] not in BY_OTHERS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_only_what_production_says_needs_an_operator(build: Build) -> None:
    assert [folder for folder in FOLDERS if of_kind(build(folder), *BY_OTHERS)] == ["rendered/production"]


def test_the_readme_names_every_folder() -> None:
    readme = (K8S / "README.md").read_text()
    assert [folder for folder in FOLDERS if f"`{folder}`" not in readme] == []


class TestNamespace:
    def test_it_refuses_pods_that_ask_for_more(self, build: Build) -> None:
        (namespace,) = build("namespace")
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"

    def test_the_mesh_changes_nothing_but_its_annotations(self, build: Build) -> None:
        (plain,) = build("namespace")
        (meshed,) = build("namespace-mesh")
        assert meshed["metadata"].pop("annotations")["linkerd.io/inject"] == "enabled"
        assert meshed == plain

    @pytest.mark.parametrize("folder", RENDERED)
    def test_the_rendered_pods_are_let_in(self, folder: str, build: Build) -> None:
        """By what `restricted` asks of a Linux pod."""
        for workload in of_kind(build(folder), *WORKLOADS):
            pod = workload["spec"]["template"]["spec"]
            assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
            allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}
            kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
            assert kinds <= {*allowed, "projected", "secret"}
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                context = {**pod.get("securityContext", {}), **container["securityContext"]}
                assert context["runAsNonRoot"] is True
                assert context["seccompProfile"]["type"] == "RuntimeDefault"
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"] == {"drop": ["ALL"]}


class TestCluster:
    def test_the_runtime_class_is_the_one_that_gpu_pods_name(self, build: Build) -> None:
        (runtime,) = of_kind(build("cluster"), "RuntimeClass")
        (plugin,) = of_kind(build("device-plugin/plain"), "DaemonSet")
        assert runtime["metadata"]["name"] == plugin["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"

    def test_no_priority_is_given_to_strangers(self, build: Build) -> None:
        classes = {found["metadata"]["name"]: found for found in of_kind(build("cluster"), "PriorityClass")}
        assert not any(found.get("globalDefault") for found in classes.values())
        ranks = [classes[f"forebay-{name}"]["value"] for name in ("gateway", "model", "spare")]
        assert ranks == sorted(ranks, reverse=True)
        assert classes["forebay-spare"]["preemptionPolicy"] == "Never"


class TestDevicePlugin:
    @pytest.mark.parametrize("folder", PLUGINS)
    def test_it_reads_the_configuration_that_comes_with_it(self, folder: str, build: Build) -> None:
        (config,) = of_kind(build(folder), "ConfigMap")
        (plugin,) = of_kind(build(folder), "DaemonSet")
        pod = plugin["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume.get("configMap", {}).get("name") for volume in pod["volumes"]}
        (container,) = pod["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        folder_of_file, _, file = environment["CONFIG_FILE"].rpartition("/")
        assert volumes[mounts[folder_of_file]] == config["metadata"]["name"]
        assert yaml.safe_load(config["data"][file])["version"] == "v1"

    @pytest.mark.parametrize("folder", PLUGINS)
    def test_its_version_is_pinned(self, folder: str, build: Build) -> None:
        (plugin,) = of_kind(build(folder), "DaemonSet")
        image = plugin["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image.startswith("nvcr.io/nvidia/k8s-device-plugin:v")

    def test_only_mig_needs_a_privilege(self, build: Build) -> None:
        added = {}
        for folder in PLUGINS:
            (plugin,) = of_kind(build(folder), "DaemonSet")
            context = plugin["spec"]["template"]["spec"]["containers"][0]["securityContext"]
            added[folder] = context["capabilities"].get("add", [])
            # Kubernetes refuses the two together.
            assert context.get("allowPrivilegeEscalation") is (None if added[folder] else False)
        assert added == {"device-plugin/mig": ["SYS_ADMIN"], "device-plugin/plain": [], "device-plugin/time-sliced": []}


@pytest.mark.parametrize("preset", RENDER["PRESETS"])
def test_the_rendered_chart_is_up_to_date(preset: str, tool: Callable[[str], str]) -> None:
    expected = RENDER["rendered"](preset, tool("helm"))
    assert RENDER["place"](preset).read_text() == expected, "run `make k8s` and commit the result"
