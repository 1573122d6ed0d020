"""What a pod says of its load."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from flask import Flask

from services.common.orca import LOAD_HEADER, Report, read_report
from services.inference.engine.meter import Load
from services.inference.load import register, report_of


def test_a_pod_without_an_engine_has_nothing_to_do() -> None:
    assert report_of([], 8) == Report(0, 0, 8, 0.0, None)


def test_engines_are_summed_and_the_fuller_cache_counts() -> None:
    loads = [Load(3, 8, 0.5, 2.0), Load(1, 2, 0.75, None), Load(0, 0, 0.1, 0.25)]
    assert report_of(loads, 8) == Report(4, 10, 24, 0.75, 2.25)


@pytest.mark.parametrize(
    ("path", "carries"), [("/readyz", True), ("/v1/models", True), ("/v1/none", True), ("/healthz", False)]
)
def test_answers_that_gateways_read_carry_it(path: str, carries: bool) -> None:
    app = Flask("pod")
    register(app, cast("Any", SimpleNamespace(loads=lambda: [Load(3, 8, 0.5, 2.0)])), 8)
    value = app.test_client().get(path).headers.get(LOAD_HEADER)
    assert (value is not None) == carries
    if value is not None:
        assert read_report(value) == Report(3, 8, 8, 0.5, 2.0)
