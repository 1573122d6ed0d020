"""helm and kubectl, as `helm/tools.py` puts them into build/tools."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = ROOT / "build" / "tools"


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """The path of a program."""
    done = subprocess.run([sys.executable, ROOT / "helm" / "tools.py"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"helm and kubectl cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    return lambda name: str(TOOLS / name)
