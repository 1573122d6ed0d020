"""Rules of the whole suite: what a test may need from the system, and when a skip is a failure.

    @pytest.mark.requires("curl")

skips a test where the program is absent. Under FOREBAY_REQUIRE_ALL=1, which `.ci/run` sets after installing everything,
nothing may be skipped: each skip, of whatever origin, fails.

Where several processes share the suite (`make test`), the tests of a file run in one of them.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from prometheus_client import REGISTRY

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
ROOT = Path(__file__).parents[1]
HOME = ROOT / ".forebay"
TOGETHER = ("tests/e2e/", "tests/integration/inference/", "tests/integration/accounts/")
# Whole stacks compute, gateways mostly wait: so these two beside each other, then pods beside what is short.
FIRST = ("tests/e2e/", "tests/integration/gateway/", *TOGETHER, "tests/unit/inference/", "tests/chart/")
REQUIRE_ALL = os.environ.get("FOREBAY_REQUIRE_ALL") == "1"
# Processes that share the cores have a part of them each; torch would have all in each, where its threads wait in turn.
if (sharing := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // sharing)))
# Our applications want a folder for what several processes count; those that we start inherit it.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="forebay-test-metrics-")
    atexit.register(shutil.rmtree, os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(program, ...): the test needs these programs on the PATH")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes longest first, so that no process of several ends long after the others."""

    def place(item: pytest.Item) -> int:
        return next((i for i, place in enumerate(FIRST) if item.nodeid.startswith(place)), len(FIRST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What a process of several gets as a whole: the tests of a folder whose stack, pods or database take long to
    start, else those of a file. (xdist has marks for that, `xdist_group`, which pytest 9.2 does not let it read.)"""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - only where there are several processes

    class Rooms(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid.partition("::")[0])

    return Rooms(config, log)


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
def model_folder() -> Path:
    """The bundled model as safetensors. Converting it takes half a minute, once; who wants it meanwhile waits."""
    # torch, only for the tests that need it.
    from services.inference.engine.source import resolve  # noqa: PLC0415

    return resolve("bundled", HOME)


@pytest.fixture(scope="session")
def prepared_home(model_folder: Path) -> Path:
    """A FOREBAY_HOME whose `models/` holds the bundled model, converted: the repository's own."""
    return HOME
