"""`forebay status`: every process of the running stack, as a table or as JSON."""

from __future__ import annotations

import json
from typing import Any

from forebay import checks, state
from services.common.settings import CommonSettings

NOT_RUNNING = 3
"""Exit status when no `forebay up` lives on this home, as service managers have it."""
COLUMNS = ("name", "state", "pid", "restarts", "url", "metrics_url", "since")


def status(*, as_json: bool) -> int:
    """Prints the state of the stack under FOREBAY_HOME. Returns the exit status.

    Raises:
        checks.Refused: a setting is wrong.
    """
    home = state.Home(checks.read_settings(CommonSettings).home.expanduser().resolve())
    found = state.read_status(home)
    if as_json:
        print(json.dumps(found or {"state": "not running", "home": str(home.path), "processes": []}, indent=2))
    elif found is None:
        print(f"Not running: no `forebay up` holds {home.path}.")
    else:
        print(f"{found['state']}: {found['endpoint']}, supervisor pid {found['pid']}, home {found['home']}\n")
        print(table(found["processes"]))
    return NOT_RUNNING if found is None else 0


def table(processes: list[dict[str, Any]]) -> str:
    """The processes, one a line under a heading."""
    rows = [list(COLUMNS), *([cell(process[column]) for column in COLUMNS] for process in processes)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def cell(value: Any) -> str:
    return "-" if value is None else str(value)
