"""The unit tests of a module once more, under the fixtures of this folder: on PostgreSQL instead of SQLite."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

SQLITE_ONLY = {"database", "tmp_path"}
"""Fixtures of tests that look into the file of a SQLite database."""


def unit_tests(module: ModuleType) -> dict[str, Any]:
    """The module's tests and fixtures, to be put among the names of the module that asks."""
    found = {name: value for name, value in vars(module).items() if name.startswith("test_") or _is_fixture(value)}
    return {
        name: value
        for name, value in found.items()
        if _is_fixture(value) or SQLITE_ONLY.isdisjoint(inspect.signature(value).parameters)
    }


def _is_fixture(value: Any) -> bool:
    return type(value).__name__ == "FixtureFunctionDefinition"
