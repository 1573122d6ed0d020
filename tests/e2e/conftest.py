"""The stack under test: one for the whole run, and more of them for tests that break theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import HANG, Stack, Up, wait_until_ready
from tests.ports import free_row

PORTS = 16
"""Ports that are kept free for one stack: four gateways, four pods, eight for metrics."""


@pytest.fixture(scope="session")
def start_up(tmp_path_factory: pytest.TempPathFactory, prepared_home: Path) -> Iterator[Callable[..., Up]]:
    """Starts `forebay up` on free ports. Without a `home` it gets a new one, where the model is already converted;
    further settings by name, without their prefix. All are ended after the session."""
    started: list[Up] = []

    def start(home: Path | None = None, *, cwd: Path | None = None, **settings: str | int) -> Up:
        if home is None:
            home = tmp_path_factory.mktemp("home")
            (home / "models").symlink_to(prepared_home / "models")
        first = free_row(PORTS)
        ports = {"GATEWAY_PORT": first, "INFERENCE_PORT": first + 4, "METRICS_PORT": first + 8}
        environment = {f"FOREBAY_{name.upper()}": str(value) for name, value in {**ports, **settings}.items()}
        started.append(Up(home, environment, cwd=cwd))
        return started[-1]

    yield start
    for up in started:
        up.end()


@pytest.fixture(scope="session")
def stack(start_up: Callable[..., Up], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A ready stack of one gateway and one pod, for all tests that leave it as it is."""
    # Started in a folder whose packages are named like ours: no process may take them for ours.
    folder = tmp_path_factory.mktemp("work")
    for name in ("services", "forebay"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('code of the working folder was run')")
    up = start_up(cwd=folder)
    ready = wait_until_ready(up)
    family = up.family()
    yield ready
    up.press_ctrl_c()
    assert up.wait() == 0, up.output
    _, left = psutil.wait_procs(family, timeout=HANG)
    assert not left
