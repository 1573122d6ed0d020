"""Renders the chart with Helm and finds things in what comes out."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "forebay"
TOOLS = ROOT / "build" / "tools"
PRESETS = tuple(sorted(path.name for path in CHART.glob("values-*.yaml")))
COMBINATIONS = tuple(sorted(f"ci/{path.name}" for path in (CHART / "ci").glob("*-values.yaml")))
WORKLOADS = ("Deployment", "StatefulSet", "Job", "Pod")

Manifest = dict[str, Any]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Refused(Exception):
    """Helm does not render these values; the message is what it says."""


def helm(*arguments: str, program: str = "helm", text: str | None = None) -> str:
    """What Helm prints.

    Raises:
        Refused: it fails.
    """
    environment = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, input=text, env=environment, check=False
    )
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


@functools.cache
def text_of(*files: str, values: str = "{}", program: str = "helm", kubernetes: str = "1.31.0") -> str:
    """The chart rendered with values files of it, in this order, and values as JSON over them.

    Raises:
        Refused: the values are not taken.
    """
    arguments = ["template", "forebay", str(CHART), "--namespace=llm", f"--kube-version={kubernetes}"]
    arguments += [f"--values={CHART / file}" for file in files]
    return helm(*arguments, "--values=-", program=program, text=values)


@dataclass(frozen=True)
class Release:
    """The manifests of one rendering."""

    manifests: tuple[Manifest, ...]

    def of_kind(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        """The one object of that kind, or of that kind and name."""
        (found,) = [one for one in self.of_kind(kind) if name in (None, one["metadata"]["name"])]
        return found

    def has(self, kind: str, name: str) -> bool:
        return any(manifest["metadata"]["name"] == name for manifest in self.of_kind(kind))

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Each workload's name, and its pod: labels, annotations and spec."""
        for workload in self.of_kind(*WORKLOADS):
            yield workload["metadata"]["name"], workload["spec"].get("template", workload)

    def pod(self, name: str) -> Manifest:
        return dict(self.pods())[name]

    def gateway(self) -> str:
        """Name of the gateway's Deployment, whatever the release is called."""
        names = [one["metadata"]["name"] for one in self.of_kind("Deployment")]
        (found,) = [name for name in names if name.endswith("-gateway")]
        return str(found)

    def container(self, name: str) -> Manifest:
        """The one container of a workload."""
        (container,) = self.pod(name)["spec"]["containers"]
        return container

    def environment(self, name: str) -> dict[str, str]:
        """What the container of a workload gets by name, ConfigMaps resolved."""
        container = self.container(name)
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                found.update(self.one("ConfigMap", source["configMapRef"]["name"])["data"])
        found.update({entry["name"]: entry["value"] for entry in container.get("env", [])})
        return found


def render(*files: str, values: Manifest | None = None, **options: str) -> Release:
    """The chart rendered with values files and with values over them.

    Raises:
        Refused: the values are not taken.
    """
    text = text_of(*files, values=json.dumps(values or {}), **options)
    return Release(tuple(one for one in yaml.load_all(text, Loader) if one))


def model(**values: Any) -> Manifest:
    """Values with one model `demo`."""
    return {"models": {"demo": values}}


MODEL = "forebay-model-demo"
"""Names that the release of these tests, `forebay`, gives."""
GATEWAY = "forebay-gateway"
CACHE = "forebay-cache"


def containers(pod: Manifest) -> list[Manifest]:
    """All containers of a pod, those that run before the others too."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
