"""Helm out of build/tools (`make chart-tools`), or whichever is on the PATH; without it these tests are skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.chart.rendering import TOOLS

HERE = Path(__file__).parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    if HERE in item.path.parents and not item.get_closest_marker("without_helm"):
        programs = ["helm", *(name for mark in item.iter_markers("tools") for name in mark.args)]
        path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
        absent = [name for name in programs if shutil.which(name, path=path) is None]
        if absent:
            pytest.skip(f"not installed: {', '.join(absent)}; `make chart-tools` fetches it")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tools(name, ...): the test needs these programs of build/tools too")
    config.addinivalue_line("markers", "without_helm: the test of the chart renders nothing")
