"""How torch's threads wait for each other in a pod, which only the environment before torch can say."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHOW = "import services.inference.gunicorn_conf, json, os, sys; json.dump(dict(os.environ), sys.stdout)"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, ("ACTIVE", "2000"), id="a moment, also where several models are loaded"),
        pytest.param({"GOMP_SPINCOUNT": "500"}, ("ACTIVE", "500"), id="as long as the operator says"),
        pytest.param({"OMP_WAIT_POLICY": "PASSIVE"}, ("PASSIVE", None), id="not at all where the operator says so"),
    ],
)
def test_threads_spin_before_they_sleep(given: dict[str, str], expected: tuple[str | None, str | None]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment | given, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert tuple(found.get(name) for name in NAMES) == expected
