"""The rules: what Prometheus itself says of them, and that nobody is paged without being told what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.config import WINDOWS, Options
from grafana.generate import ROOT
from grafana.rules import groups
from tests.unit.grafana.promql import rules_of

FILE = ROOT / "grafana" / "rules" / "forebay.yaml"
TESTS = sorted((ROOT / "grafana" / "rules" / "tests").glob("*.yaml"))
PAGES = ROOT / "docs" / "runbooks"
ALERTS = [rule for rule in rules_of(groups()) if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
SECTIONS = ["Meaning", "Impact", "Look", "Do"]


def ids(rule: dict[str, Any]) -> str:
    return " ".join([rule["alert"], *(rule["labels"].get(name, "") for name in ("long", "component"))]).strip()


def promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.requires("promtool")
def test_prometheus_reads_the_rules() -> None:
    promtool("check", "rules", "--lint-fatal", FILE)


@pytest.mark.requires("promtool")
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_alert_fires_and_stays_quiet_as_its_series_say(path: Path) -> None:
    promtool("test", "rules", path)


@pytest.mark.requires("promtool")
def test_prometheus_reads_the_scrape_configuration() -> None:
    promtool("check", "config", "--syntax-only", ROOT / "grafana" / "prometheus" / "prometheus.yml")


def test_each_alert_is_tested_firing_and_quiet() -> None:
    cases = [
        case for path in TESTS for test in yaml.safe_load(path.read_text())["tests"] for case in test["alert_rule_test"]
    ]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert sorted(firing) == NAMES
    assert sorted(quiet) == NAMES
    assert sorted(path.stem for path in TESTS) == NAMES


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_groups_are_evaluated_in_their_order(path: Path) -> None:
    """promtool takes them in any order otherwise, and an alert then sees the records of one minute ago, or not."""
    assert yaml.safe_load(path.read_text())["group_eval_order"] == [group["name"] for group in groups()["groups"]]


@pytest.mark.parametrize("rule", ALERTS, ids=ids)
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["description"].endswith(".")
    assert rule["for"]


@pytest.mark.parametrize("rule", ALERTS, ids=ids)
def test_its_runbook_exists(rule: dict[str, Any]) -> None:
    assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


def test_the_runbooks_can_be_linked_to_where_they_are_read() -> None:
    linked = rules_of(groups(Options(runbooks="https://git.example.com/forebay/blob/main/")))
    urls = {rule["annotations"]["runbook_url"] for rule in linked if "alert" in rule}
    assert urls == {f"https://git.example.com/forebay/blob/main/docs/runbooks/{name}.md" for name in NAMES}


def test_each_page_is_of_an_alert() -> None:
    assert sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "README") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_its_four_parts_and_is_in_the_list(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert f"({name}.md)" in (PAGES / "README.md").read_text()


def test_a_short_window_is_a_twelfth_of_its_long_one() -> None:
    """So that an alert ends soon after its cause."""
    hours = {"m": 1 / 60, "h": 1.0, "d": 24.0}
    lengths = [[int(text[:-1]) * hours[text[-1]] for text in (window.long, window.short)] for window in WINDOWS]
    assert [round(long / short) for long, short in lengths] == [12] * len(WINDOWS)
