"""The rules of tests/conftest.py, seen on a suite of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest

@pytest.mark.requires("no-such-program")
def test_with_a_program():
    raise AssertionError("must not run")

@pytest.mark.requires("sh")
def test_with_a_program_that_is_there():
    pass

def test_that_skips_itself():
    pytest.skip("not today")

@pytest.mark.xfail(reason="known")
def test_that_is_expected_to_fail():
    raise AssertionError
"""


def outcome(folder: Path, suite: str, **environment: str) -> str:
    """pytest's closing words on the suite."""
    (folder / "test_it.py").write_text(suite)
    done = subprocess.run(
        (sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(folder), str(folder)),
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if name != "FOREBAY_REQUIRE_ALL"}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()[-1].split(" in ")[0]


def test_a_test_whose_program_is_absent_is_skipped(tmp_path: Path) -> None:
    assert outcome(tmp_path, SUITE) == "1 passed, 2 skipped, 1 xfailed"


def test_where_everything_is_required_each_skip_fails(tmp_path: Path) -> None:
    assert outcome(tmp_path, SUITE, FOREBAY_REQUIRE_ALL="1") == "1 failed, 1 passed, 1 xfailed, 1 error"


@pytest.mark.parametrize(("required", "closing"), [("0", "1 skipped"), ("1", "1 error")])
def test_a_whole_file_that_skips_counts_too(tmp_path: Path, required: str, closing: str) -> None:
    suite = "import pytest\npytest.skip('not today', allow_module_level=True)"
    assert outcome(tmp_path, suite, FOREBAY_REQUIRE_ALL=required) == closing
