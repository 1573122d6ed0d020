"""The images by themselves: what is in them, and how each behaves in a container that may do little."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.containers import ROOT, Podman, wait_for
from tests.cluster.watch import confinement

CONFINED = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)
HEALTH = ("python", "-m", "services.web.health")
PYTHON_IMAGES = ("gateway", "inference")
SECRETS = {"FOREBAY_JWT_SECRET": "j" * 40, "FOREBAY_KEY_SECRET": "k" * 40}


@contextmanager
def running(podman: Podman, image: str, *options: str) -> Iterator[str]:
    """A confined container of the image, by name."""
    name = f"{podman.run_name}-{image.partition(':')[0].rpartition('-')[2]}"
    podman("run", "--detach", "--name", name, *CONFINED, *options, image)
    try:
        yield name
    finally:
        podman("rm", "--force", "--volumes", "--time", "0", name)


def in_image(podman: Podman, image: str, *command: str) -> str:
    return podman("run", "--rm", "--network=none", "--entrypoint", command[0], image, *command[1:])


@pytest.mark.requires("hadolint")
def test_hadolint_finds_nothing() -> None:
    files = sorted(ROOT.glob("services/*/Dockerfile"))
    assert len(files) == 3
    done = subprocess.run(["hadolint", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["gateway", "inference", "cache"])
def test_an_image_says_what_it_is_and_how_to_run_it(
    podman: Podman, images: dict[str, str], version: str, name: str
) -> None:
    image = podman.inspect(images[name], "image")

    assert image["User"] == "65532:65532"
    assert image["Config"]["Entrypoint"][0] not in {"sh", "bash", "/bin/sh"}
    assert image["Healthcheck"]["Test"][0] == "CMD"
    labels = image["Labels"]
    assert labels["org.opencontainers.image.title"] == f"forebay-{name}"
    assert labels["org.opencontainers.image.version"] == version
    assert re.match(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])


@pytest.mark.parametrize("name", PYTHON_IMAGES)
def test_an_image_holds_no_tools_to_build_with_and_nothing_of_the_builders_settings(
    podman: Podman, images: dict[str, str], name: str
) -> None:
    unwanted = (
        "*/bin/gcc*",
        "*/bin/cc",
        "*/bin/pip*",
        "*/pip.conf",
        "*/pip-host",
        "*/.cache/*",
        "*/lists/*_*",
        "*.deb",
    )
    paths = [word for pattern in unwanted for word in ("-o", "-path", pattern)][1:]

    found = podman("run", "--rm", "--user=0", "--entrypoint=find", images[name], "/", "-xdev", "(", *paths, ")")

    assert found == ""
    history = podman("history", "--no-trunc", "--format", "json", images[name])
    assert "://" not in re.sub(r"sqlite:/+", "", history), "an address of the builder's"


@pytest.mark.parametrize("name", PYTHON_IMAGES)
def test_every_python_package_in_an_image_is_one_that_constraints_pins(
    podman: Podman, images: dict[str, str], name: str
) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(canonical(*line.split("==")) for line in lines if "==" in line and not line.startswith("#"))
    script = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps([(d.name, d.version) for d in m.distributions(path=[p for p in sys.path if '/opt/' in p])]))"
    )

    installed = dict(canonical(*row) for row in json.loads(in_image(podman, images[name], "python", "-c", script)))

    assert installed
    # setuptools comes with torch, which leaves its version open; freezing an environment never lists it.
    assert {k: v for k, v in installed.items() if pinned.get(k) != v and k != "setuptools"} == {}
    assert ("torch" in installed) == (name == "inference")


def canonical(name: str, version: str) -> tuple[str, str]:
    return re.sub(r"[-_.]+", "-", name).lower(), version.partition("+")[0]


def test_the_gateway_is_less_than_250_mb_over_its_base(podman: Podman, images: dict[str, str]) -> None:
    sizes = {name: podman.inspect(name, "image")["Size"] for name in (images["gateway"], podman.base_image())}

    assert sizes[images["gateway"]] - sizes[podman.base_image()] < 250e6


def test_the_gateway_has_what_it_needs_for_kubernetes_and_for_spans(podman: Podman, images: dict[str, str]) -> None:
    """Neither is imported before a setting asks for it, and a part of the client is taken out."""
    script = "import services.gateway.upstreams.slices, opentelemetry.exporter.otlp.proto.http.trace_exporter"

    in_image(podman, images["gateway"], "python", "-c", script)


def test_a_pod_starts_from_its_bundled_model_offline_and_writes_nothing(podman: Podman, images: dict[str, str]) -> None:
    with running(podman, images["inference"], "--network=none", "--volume=/var/lib/forebay") as name:
        ready = ("exec", name, *HEALTH, "FOREBAY_INFERENCE_PORT", "/readyz")
        wait_for(lambda: podman.works(*ready), "the pod", 120)

        confinement(podman, name)
        assert podman("exec", name, "find", "/var/lib/forebay", "-type", "f") == ""
        assert podman.works("healthcheck", "run", name)


def test_the_gateway_ends_in_good_order_on_sigterm(podman: Podman, images: dict[str, str]) -> None:
    secrets = [f"--env={name}={value}" for name, value in SECRETS.items()]
    with running(podman, images["gateway"], "--network=none", "--volume=/var/lib/forebay", *secrets) as name:
        wait_for(lambda: podman.works("healthcheck", "run", name), "the gateway", 60)
        confinement(podman, name)

        podman("stop", "--time", "20", name)

        assert podman.inspect(name)["State"]["ExitCode"] == 0, podman("logs", name)


def test_the_cache_without_a_password_listens_on_loopback_only(podman: Podman, images: dict[str, str]) -> None:
    with running(podman, images["cache"]) as name:
        wait_for(lambda: podman.works("healthcheck", "run", name), "the cache", 20)
        confinement(podman, name)

        with pytest.raises(AssertionError, match="refused"):
            ask_cache(podman, images, podman.address(name), "PING")


def test_the_cache_with_a_password_answers_only_who_knows_it(podman: Podman, images: dict[str, str]) -> None:
    password = 'with "quotes", a \\ and a space'
    file = podman.folder / "cache-password"
    file.write_text(password + "\n")
    file.chmod(0o644)
    with running(podman, images["cache"], f"--volume={file}:/run/secrets/forebay/cache-password:ro") as name:
        wait_for(lambda: podman.works("healthcheck", "run", name), "the cache", 20)
        address = podman.address(name)

        assert "NOAUTH" in ask_cache(podman, images, address, "PING")
        assert "True" in ask_cache(podman, images, address, "PING", password=password)
        assert password not in podman("top", name, "args")


def test_the_cache_finds_on_its_volume_what_it_had(podman: Podman, images: dict[str, str]) -> None:
    """Killed, and then made anew: what is told here is nothing but the volume and where it is."""
    file = podman.folder / "cache-password"
    file.write_text("password\n")
    file.chmod(0o644)
    volume = f"--volume={podman.run_name}-cache:/var/lib/forebay"
    told = ("--env=FOREBAY_CACHE_DIR=/var/lib/forebay", f"--volume={file}:/run/secrets/forebay/cache-password:ro")
    with running(podman, images["cache"], volume, *told) as name:
        wait_for(lambda: podman.works("healthcheck", "run", name), "the cache", 20)
        assert "OK" in ask_cache(podman, images, podman.address(name), "SET kept 1", password="password")
        podman("kill", name)
    with running(podman, images["cache"], volume, *told) as name:
        wait_for(lambda: podman.works("healthcheck", "run", name), "the cache", 20)
        assert ask_cache(podman, images, podman.address(name), "EXISTS kept", password="password") == "1"


def test_the_cache_does_not_start_without_a_password_that_it_was_told_of(
    podman: Podman, images: dict[str, str]
) -> None:
    with running(podman, images["cache"], "--env=FOREBAY_CACHE_PASSWORD_FILE=/run/secrets/absent") as name:
        assert podman("wait", name) == "1"
        assert "no password file /run/secrets/absent" in podman.output_of(name)


def ask_cache(podman: Podman, images: dict[str, str], host: str, command: str, password: str | None = None) -> str:
    script = (
        "import sys, redis\n"
        "client = redis.Redis(sys.argv[1], password=sys.argv[3] if len(sys.argv) > 3 else None, socket_timeout=5)\n"
        "try: print(client.execute_command(sys.argv[2]))\n"
        "except redis.exceptions.AuthenticationError as error: print('NOAUTH', error)\n"
    )
    arguments = [host, command, *([password] if password else [])]
    return podman("run", "--rm", "--entrypoint", "python", images["gateway"], "-c", script, *arguments)
