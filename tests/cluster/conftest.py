"""Containers for real: one run of podman for the whole session, on images that are built first."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest

from tests.cluster.containers import ROOT, Podman, why_not
from tests.cluster.release import Release

LONG = 1500
"""Seconds that a test may take, with the fixtures that it is the first to ask for, such as images from scratch."""
STREAM_SECONDS = 90
REQUEST_TIMEOUT = STREAM_SECONDS + 12


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster" in item.nodeid.split("/"):
            item.add_marker(pytest.mark.timeout(LONG))


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    if reason := why_not():
        pytest.skip(reason)
    podman = Podman()
    try:
        podman.remove_of_dead_runs()
        yield podman
    finally:
        podman.close()


@pytest.fixture(scope="session")
def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


@pytest.fixture(scope="session")
def images(podman: Podman, version: str) -> dict[str, str]:
    """The three images by name, built as `make images` builds them; podman keeps the layers from run to run."""
    environment = {**podman.environment, "IMAGES_TOOL": "podman", "BASE_IMAGE": podman.base_image()}
    for variable in ("IMAGES_REGISTRY", "IMAGES_TAG", "TORCH_VARIANT"):
        environment.pop(variable, None)
    done = subprocess.run(
        [ROOT / "images" / "build"], env=environment, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    sys.stdout.write("".join(line for line in done.stdout.splitlines(keepends=True) if line.startswith("==")))
    return {name: f"localhost/forebay-{name}:{version}" for name in ("gateway", "inference", "cache")}


@pytest.fixture(scope="module")
def release(podman: Podman, images: dict[str, str]) -> Iterator[Release]:
    """The CPU preset, ready, behind an ingress whose annotations the tests hand to nginx."""
    release = Release(
        podman,
        "global.image.registry=localhost",
        f"timeouts.request={REQUEST_TIMEOUT}",
        "ingress.enabled=true",
        "ingress.hosts={llm.test}",
    )
    try:
        for pod in [release.start(component) for component in ("cache", "inference", "gateway")]:
            release.wait_ready(pod)
        yield release
    finally:
        podman.remove(release.name)
