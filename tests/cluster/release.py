"""An installed chart without a cluster: rendered by Helm, each workload's pod played by podman by its Service's name.

What the pods are told is what the chart says: environment, commands, volumes, security context. What stands in for
Kubernetes is this file: names by network aliases, a probe by asking what the manifest asks, the Secret by podman's own.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import time
import urllib.request
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.containers import ROOT, Podman, wait_for

CHART = ROOT / "helm" / "forebay"
HELM = ROOT / "build" / "tools" / "helm"
Manifest = dict[str, Any]


def render(name: str, *values: str, files: tuple[str, ...] = ("values-cpu-demo.yaml",)) -> list[Manifest]:
    """The chart's manifests, with `KEY=VALUE` settings over the values files."""
    command = [str(HELM), "template", name, str(CHART)]
    command += [f"--values={CHART / file}" for file in files] + [f"--set={value}" for value in values]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


class Release:
    """The workloads of one rendering, as pods on a network of their own."""

    def __init__(self, podman: Podman, *values: str) -> None:
        self.podman = podman
        self.name = podman.run_name
        self.network = self.name
        self.manifests = render(self.name, *values)
        self._pods: dict[str, Manifest] = {}
        podman("network", "create", self.network)
        self.secrets = self._make_secrets()

    def of_kind(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def workload(self, component: str) -> Manifest:
        """The Deployment or StatefulSet of `gateway`, `inference` or `cache`."""
        kinds = self.of_kind("Deployment") + self.of_kind("StatefulSet")
        found = [one for one in kinds if one["metadata"]["labels"]["app.kubernetes.io/component"] == component]
        assert len(found) == 1, f"{len(found)} workloads of {component}"
        return found[0]

    def start(self, component: str, suffix: str = "") -> str:
        """Plays one pod of a workload and returns its name."""
        workload = self.workload(component)
        template = workload["spec"]["template"]
        name = f"{workload['metadata']['name']}{suffix}"
        return self.play({**template, "metadata": {**template["metadata"], "name": name}})

    def play(self, pod: Manifest) -> str:
        """Plays a pod on the network, under the name of each Service that selects it, and returns its name."""
        name = str(pod["metadata"]["name"])
        text = yaml.safe_dump_all([*self.of_kind("ConfigMap"), *for_podman(pod, self.secrets)])
        network = ":".join([self.network, ",".join(f"alias={alias}" for alias in self._services(pod))]).rstrip(":")
        self.podman("kube", "play", "--network", network, "-", text=text)
        self._pods[name] = pod
        return name

    def stop(self, pod: str) -> None:
        """Ends a pod as Kubernetes does: its address leaves the Service at once, the preStop hook keeps it serving
        those who have not heard of that, then its processes end, then its network."""
        self.podman.forget_name(self.network, self.address(pod))
        time.sleep(max(_pre_stop(container) for container in self._pods[pod]["spec"]["containers"]))
        self.podman("stop", "--time", "20", *self.containers(pod))
        self.podman("pod", "rm", "--force", pod)
        del self._pods[pod]

    @property
    def pods(self) -> list[str]:
        """The names of the pods that were played and not stopped."""
        return list(self._pods)

    def containers(self, pod: str) -> list[str]:
        """The pod's containers as podman names them, without the ones that run before the others start."""
        return [f"{pod}-{container['name']}" for container in self._pods[pod]["spec"]["containers"]]

    def address(self, pod: str) -> str:
        return self.podman.address(self.containers(pod)[0])

    def wait_ready(self, pod: str, seconds: float = 120) -> None:
        """Waits until every readiness probe of the pod passes, asked as the manifest says."""
        for container in self._pods[pod]["spec"]["containers"]:
            wait_for(partial(self._probe, pod, container), f"{pod} ready", seconds)

    def _probe(self, pod: str, container: Manifest) -> bool:
        probe = container["readinessProbe"]
        if "exec" in probe:
            return self.podman.works("exec", f"{pod}-{container['name']}", *probe["exec"]["command"])
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        url = f"http://{self.address(pod)}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)

    def _services(self, pod: Manifest) -> list[str]:
        labels = pod["metadata"].get("labels", {})
        return [
            service["metadata"]["name"]
            for service in self.of_kind("Service")
            if (selector := service["spec"].get("selector")) and selector.items() <= labels.items()
        ]

    @property
    def api_key(self) -> str:
        return next(iter(self.secrets.values()))["api-key"]

    def _make_secrets(self) -> dict[str, dict[str, str]]:
        """What the chart's Job puts into its Secret, made by the Job's own code; by the Secret's name."""
        job = self.of_kind("Job")[0]["spec"]["template"]["spec"]["containers"][0]
        arguments = [argument.removeprefix("--").partition("=") for argument in job["command"][2:]]
        options: dict[str, Any] = {key.replace("-", "_"): value for key, _, value in arguments if key != "token"}
        options["token"] = [value for key, _, value in arguments if key == "token"]
        return {options["secret"]: dict(_make_secrets_module().missing({}, Namespace(**options)))}


def for_podman(pod: Manifest, secrets: dict[str, dict[str, str]]) -> list[Manifest]:
    """The pod, and what has to be played beside it, as podman 4.3 takes them."""
    name = pod["metadata"]["name"]
    spec = copy.deepcopy(pod["spec"])
    beside: list[Manifest] = []
    for volume in spec.get("volumes", []):
        if "emptyDir" in volume:
            _rename(spec, volume, f"{name}-{volume['name']}")  # all pods would share one of a name
        elif "secret" in volume:
            # Each version of podman keeps a Secret in a form of its own, so it goes in as what all of them read alike.
            secret = volume.pop("secret")
            copied = f"{name}-{secret['secretName']}"
            volume["configMap"] = {"name": copied, "items": secret["items"]}
            data = secrets[secret["secretName"]]
            beside.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": copied}, "data": data})
        if "configMap" in volume:
            volume["configMap"].setdefault("optional", False)  # it dies where this is left out
    for container in spec["containers"]:
        container.pop("ports", None)  # it would publish them on this machine
    # The chart's annotations it takes for labels, and finds them too long. With this one of its own it keeps an init
    # container that has ended, which it else removes, and may still see running then.
    annotations = {"io.podman.annotations.init.container.type": "always"}
    metadata = {"name": name, "labels": pod["metadata"]["labels"], "annotations": annotations}
    return [*beside, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]


def _rename(spec: Manifest, volume: Manifest, name: str) -> None:
    for container in spec["containers"] + spec.get("initContainers", []):
        for mount in container.get("volumeMounts", []):
            if mount["name"] == volume["name"]:
                mount["name"] = name
    volume["name"] = name


def _make_secrets_module() -> Any:
    path = Path(CHART / "files" / "make_secrets.py")
    spec = importlib.util.spec_from_file_location("make_secrets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pre_stop(container: Manifest) -> float:
    return float(container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))


def processes_of(container: dict[str, Any]) -> list[int]:
    """The process ids of a container, as this machine numbers them: its first process and that one's children."""
    first = int(container["State"]["Pid"])
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return [first, *map(int, children)]


def signal_all(processes: list[int], number: int) -> None:
    for process in processes:
        os.kill(process, number)
