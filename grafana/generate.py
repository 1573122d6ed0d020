"""Writes the rule file and the dashboards: `make dashboards`.

Each goes to grafana/, where compose mounts it from, and into the chart, which can read no file outside its own folder.
A test compares all of them with what this yields.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from grafana.config import Options
from grafana.gateway import gateway
from grafana.overview import overview
from grafana.panels import Json
from grafana.rules import groups

ROOT = Path(__file__).parents[1]
PLACES = (Path("grafana"), Path("helm/forebay/files"))
HEAD = "# Generated from grafana/rules.py by `make dashboards`; do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines as blocks, so that they can be read."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def rule_file(options: Options | None = None) -> str:
    """The rule file as YAML."""
    return HEAD + yaml.dump(groups(options), Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def boards(options: Options | None = None) -> list[Json]:
    """The dashboards."""
    return [overview(options), gateway(options)]


def files(options: Options | None = None) -> dict[Path, str]:
    """The text of each generated file, by its path in the repository."""
    made = {}
    for place in PLACES:
        made[place / "rules" / "forebay.yaml"] = rule_file(options)
        for board in boards(options):
            # JSON has no comments: the dashboard itself says so, and Grafana then offers no editing.
            text = json.dumps(board, indent=2, ensure_ascii=False) + "\n"
            made[place / "dashboards" / f"{board['uid']}.json"] = text
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runbooks", default="", metavar="URL", help="where this repository can be read, for the links to its runbooks"
    )
    base: str = parser.parse_args().runbooks
    for path, text in files(Options(runbooks=base and base.rstrip("/") + "/")).items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)


if __name__ == "__main__":
    main()
