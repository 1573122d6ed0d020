"""podman as the tests drive it: one run's containers, networks, volumes and secrets, all named after the run.

A run is named after its process, so whatever a killed one has left behind is known by its dead process and removed by
the next.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[2]
PREFIX = "forebay-run-"
PROGRAMS = ("podman", "runc", "conmon", "netavark", "aardvark-dns", "iptables", "catatonit")
HELPERS = ("/usr/lib/podman", "/usr/libexec/podman")
"""Where podman's own programs lie, beside the PATH."""
DNS = Path("/run/containers/networks/aardvark-dns")
"""Where aardvark-dns, the name service of podman's networks, has a table for each network; it reads them on SIGHUP."""
BASE_IMAGE = "docker.io/library/debian:bookworm-slim"
OWN_BASE_IMAGE = "localhost/forebay-base:bookworm"
# runc may not raise limits above those of a container that it runs in itself; without systemd, no cgroups by way of it.
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""


def why_not() -> str | None:
    """Why containers cannot be run here, in one sentence; None when they can."""
    if os.geteuid() != 0:
        return "containers are run as root here, and this is another user"
    absent = [name for name in PROGRAMS if not any(shutil.which(name, path=path) for path in (None, *HELPERS))]
    if absent:
        return f"not installed: {', '.join(absent)}"
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "the namespaces that containers are made of cannot be had here"


class Podman:
    """One run's use of podman. `close` removes everything that has the run's name."""

    def __init__(self) -> None:
        self.run_name = f"{PREFIX}{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.run_name}-"))
        configuration = self.folder / "containers.conf"
        configuration.write_text(CONFIGURATION)
        # Health checks are run by the tests themselves; podman would ask a systemd that need not be there.
        self.environment = {"CONTAINERS_CONF": str(configuration), "DISABLE_HC_SYSTEMD": "true", **os.environ}

    def __call__(
        self, *arguments: str | Path, check: bool = True, timeout: float = 120, text: str | None = None
    ) -> str:
        """Runs podman and returns what it prints.

        Raises:
            AssertionError: it failed; says what it printed.
        """
        done = subprocess.run(
            ["podman", *map(str, arguments)],
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"podman {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def works(self, *arguments: str) -> bool:
        """Whether the command ends with exit status 0."""
        return not subprocess.run(
            ["podman", *arguments], env=self.environment, capture_output=True, timeout=120, check=False
        ).returncode

    def inspect(self, name: str, kind: str = "container") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", "--type", kind, name))[0]
        return found

    def output_of(self, container: str) -> str:
        """All that a container has logged, on both streams."""
        done = subprocess.run(
            ["podman", "logs", container], env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    def address(self, container: str) -> str:
        """The IP address of a container, or of the pod that it is in."""
        state = self.inspect(container)
        if state.get("Pod") and not state["IsInfra"]:
            state = self.inspect(self.inspect(state["Pod"], "pod")["InfraContainerID"])
        return next(str(network["IPAddress"]) for network in state["NetworkSettings"]["Networks"].values())

    def forget_name(self, network: str, address: str) -> None:
        """Takes an address out of the network's name service, with its container running on."""
        table = DNS / network
        lines = table.read_text().splitlines()
        kept = [line for line in lines if address not in line.split()]
        assert len(kept) == len(lines) - 1, f"{address} stands {len(lines) - len(kept)} times in {table}"
        table.write_text("\n".join(kept) + "\n")
        os.kill(int((DNS / "aardvark.pid").read_text()), signal.SIGHUP)

    def base_image(self) -> str:
        """The image that ours are built on: from a registry, or made from a Debian mirror where none is reached."""
        named = os.environ.get("BASE_IMAGE")
        if named:
            return named
        if self.works("image", "exists", BASE_IMAGE) or self.works("pull", "--quiet", BASE_IMAGE):
            return BASE_IMAGE
        if not self.works("image", "exists", OWN_BASE_IMAGE):
            subprocess.run([ROOT / "images" / "base", OWN_BASE_IMAGE], env=self.environment, check=True)
        return OWN_BASE_IMAGE

    def remove(self, names: str) -> None:
        """Removes every pod, container, volume, secret and network whose name begins so."""
        for kind, listed, remove in (
            ("pod", "{{.Name}}", ("pod", "rm", "--force", "--time", "0")),
            ("container", "{{.Names}}", ("rm", "--force", "--volumes", "--time", "0")),
            ("volume", "{{.Name}}", ("volume", "rm", "--force")),
            ("secret", "{{.Name}}", ("secret", "rm")),
            ("network", "{{.Name}}", ("network", "rm", "--force")),
        ):
            everything = ("--all",) if kind == "container" else ()
            for name in self(kind, "ls", *everything, "--format", listed).split():
                if name.startswith(names):
                    self(*remove, name, check=False)

    def leftovers(self, names: str) -> list[str]:
        """What there is whose name begins so."""
        listed = [("pod", "{{.Name}}"), ("volume", "{{.Name}}"), ("secret", "{{.Name}}"), ("network", "{{.Name}}")]
        found = [f"container {name}" for name in self("ps", "--all", "--format", "{{.Names}}").split()]
        found += [f"{kind} {name}" for kind, form in listed for name in self(kind, "ls", "--format", form).split()]
        return [line for line in found if line.split()[1].startswith(names)]

    def remove_of_dead_runs(self) -> None:
        for line in self.leftovers(PREFIX):
            number = re.match(rf"{PREFIX}(\d+)", line.split()[1])
            if number and not Path(f"/proc/{number[1]}").exists():
                self.remove(number[0])

    def close(self) -> None:
        self.remove(self.run_name)
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_for(look: Callable[[], Any], what: str, seconds: float) -> Any:
    """What `look` returns as soon as that is true; an error counts as not yet.

    Raises:
        AssertionError: it has not become true in time.
    """
    deadline, last = time.monotonic() + seconds, "it stayed false"
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except (OSError, AssertionError, ValueError, httpx2.HTTPError) as error:
            last = f"{type(error).__name__}: {error}"
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds:.0f} s; last: {last}")
