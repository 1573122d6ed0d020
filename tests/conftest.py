"""Rules of the whole suite: what a test may need from the system, and when a skip is a failure.

    @pytest.mark.requires("curl")

skips a test where the program is absent. Under FOREBAY_REQUIRE_ALL=1, which `.ci/run` sets after installing everything,
nothing may be skipped: each skip, of whatever origin, fails.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client import REGISTRY

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
REQUIRE_ALL = os.environ.get("FOREBAY_REQUIRE_ALL") == "1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(program, ...): the test needs these programs on the PATH")


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = [program for mark in item.iter_markers("requires") for program in mark.args]
    absent = [program for program in needed if shutil.which(program) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _no_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _no_skip(report)


def _no_skip(report: Report) -> Report:
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped, which FOREBAY_REQUIRE_ALL forbids: {reason}"
    return report


@contextmanager
def own_application() -> Iterator[None]:
    """For making a whole application within this process, which outlives it: others set up log and metrics anew."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    known = set(REGISTRY._collector_to_names)
    try:
        yield
    finally:
        root.handlers[:], root.level = before
        for collector in set(REGISTRY._collector_to_names) - known:
            REGISTRY.unregister(collector)


@pytest.fixture(scope="session")
def free_row() -> Callable[[int], int]:
    """Finds so many ports in a row that are free now; returns the first."""

    def find(count: int) -> int:
        # Below the ports that the kernel gives to outgoing connections, and not always the same ones, as several runs
        # may share the machine.
        for _ in range(1000):
            first = random.randrange(12000, 30000)
            with ExitStack() as open_sockets:
                try:
                    for port in range(first, first + count):
                        open_sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
                except OSError:
                    continue
                return first
        raise AssertionError(f"no {count} free ports in a row")

    return find


@pytest.fixture(scope="session")
def prepared_home(request: pytest.FixtureRequest) -> Path:
    """A FOREBAY_HOME whose `models/` holds the bundled model, converted. Kept in pytest's cache from run to run."""
    home = request.config.cache.mkdir("forebay-home")
    environment = {**os.environ, "FOREBAY_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "services.inference.prepare", "bundled"], env=environment, check=True)
    return home
