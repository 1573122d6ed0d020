"""compose.yaml run for real by podman-compose: the CPU profile answers a chat, and `down` leaves nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from tests.cluster.containers import ROOT, Podman, wait_for
from tests.cluster.watch import confinement
from tests.ports import free_port

pytestmark = pytest.mark.requires("podman-compose")
SERVICES = ("cache", "inference", "gateway")


@pytest.fixture(scope="module")
def stack(podman: Podman, images: dict[str, str]) -> Iterator[SimpleNamespace]:
    project = f"{podman.run_name}-compose"
    secrets = podman.folder / "compose-secrets"
    port = free_port()
    environment = podman.environment | {"COMPOSE_SECRETS": str(secrets), "FOREBAY_PUBLISH": f"127.0.0.1:{port}"}

    def compose(*arguments: str) -> str:
        command = ["podman-compose", "--project-name", project, "--profile", "cpu", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    subprocess.run([ROOT / "compose" / "make-secrets"], env=environment, check=True)
    try:
        compose("up", "--detach")
        key = (secrets / "api-key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            yield SimpleNamespace(client=client, compose=compose, project=project, secrets=secrets)
    finally:
        podman.remove(project)


def test_a_chat_is_answered(stack: SimpleNamespace) -> None:
    wait_for(lambda: stack.client.get("/v1/models").json()["data"], "a model behind the gateway", 120)
    body = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 16}

    answer = stack.client.post("/v1/chat/completions", json={"model": "smollm2-135m-instruct", **body})

    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_every_container_is_healthy_and_confined(stack: SimpleNamespace, podman: Podman) -> None:
    for service in SERVICES:
        container = f"{stack.project}_{service}_1"
        confinement(podman, container)
        wait_for(partial(podman.works, "healthcheck", "run", container), f"{service} healthy", 30)


def test_no_log_holds_a_secret(stack: SimpleNamespace, podman: Podman) -> None:
    secrets = [file.read_text().strip() for file in Path(stack.secrets).iterdir()]
    assert len(secrets) == 7
    for service in (*SERVICES, "bootstrap"):
        log = podman.output_of(f"{stack.project}_{service}_1")
        assert not [secret for secret in secrets if secret in log], f"{service} logs a secret"


def test_down_leaves_nothing(stack: SimpleNamespace, podman: Podman) -> None:
    assert podman.leftovers(stack.project)

    stack.compose("down", "--volumes")

    assert podman.leftovers(stack.project) == []
