"""Who may import whom: the table of docs/architecture.md, held over every file of the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "forebay": {
        "services.gateway",
        "services.inference",
        "services.cache",
        "services.common",
    },
    "services.gateway": {"services.cache", "services.web", "services.common"},
    "services.inference": {"services.web", "services.common"},
    "services.cache": {"services.common"},
    "services.web": {"services.common"},
    "services.common": set(),
    "grafana": set(),
}
ONLY_IN = {
    "torch": {"services.inference.engine"},
    "flask": {"services.web", "services.gateway", "services.inference"},
    "flask_jwt_extended": {"services.gateway"},
    "prometheus_flask_exporter": {"services.web"},
    "redis": {"services.cache"},
    "sqlalchemy": {"services.gateway", "forebay"},
}
"""Third-party packages that are one room's business."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Every module that the file names in an import, wherever it stands in the file."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from services import cache` names a module too.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def inside(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def room_of(module: str) -> str | None:
    return next((room for room in MAY_IMPORT if inside(module, {room})), None)


SOURCES = sorted(path for folder in ("forebay", "services", "grafana") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_room_imports_only_the_rooms_it_may(path: Path) -> None:
    own = room_of(module_name(path))
    if own is None:
        assert not any(room_of(module) for module in imports_of(path))
        return
    allowed = {own, *MAY_IMPORT[own]}
    wrong = [module for module in imports_of(path) if room_of(module) not in {None, *allowed}]
    assert not wrong, f"{own} must not import {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_package_of_one_room_is_imported_nowhere_else(path: Path) -> None:
    own = module_name(path)
    wrong = [
        module
        for module in imports_of(path)
        for package, rooms in ONLY_IN.items()
        if inside(module, {package}) and not inside(own, rooms)
    ]
    assert not wrong


@pytest.mark.parametrize("module", ["forebay.cli", "forebay.up", "forebay.status"])
def test_the_operators_command_loads_neither_flask_nor_torch(module: str) -> None:
    script = f"import sys, {module}; print([name for name in ('flask', 'torch', 'redis') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ROOMS = [path.parent for path in SOURCES if path.name == "__init__.py" and path.parent.name != "versions"]


@pytest.mark.parametrize("room", ROOMS, ids=module_name)
def test_a_rooms_docstring_names_what_stands_in_it(room: Path) -> None:
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    files = {path.stem for path in room.glob("[a-z]*.py")}
    folders = {path.parent.name for path in room.glob("*/__init__.py")}
    assert {name for name in files | folders if not re.search(rf"\b{name}\b", docstring)} == set()
