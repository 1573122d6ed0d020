"""The dashboards keep the conventions that hold for all of them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from grafana.generate import ROOT, boards, files
from grafana.panels import Json
from tests.unit.grafana.promql import targets_of

BOARDS = {board["uid"]: board for board in boards()}
PANELS = {f"{uid} {panel['title']}": panel for uid, board in BOARDS.items() for panel in board["panels"]}
VARIABLES = {
    "forebay-overview": ["datasource", "namespace", "model", "pod"],
    "forebay-gateway": ["datasource", "namespace", "model", "tenant"],
}
WINDOWS = {"__rate_interval": "1m"}
"""What stands for a variable of Grafana's own; for one of the board's it is everything."""
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
each_panel = pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)


@pytest.mark.parametrize("path", files(), ids=str)
def test_the_generated_file_is_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text() == files()[path], "run `make dashboards` and commit the result"


def test_their_addresses_stay_the_same() -> None:
    assert list(BOARDS) == list(VARIABLES)


@each_board
def test_it_offers_the_usual_variables(board: Json) -> None:
    assert [variable["name"] for variable in board["templating"]["list"]] == VARIABLES[board["uid"]]


@each_board
def test_every_variable_is_used(board: Json) -> None:
    text = json.dumps(board["panels"])
    unused = [name for name in VARIABLES[board["uid"]] if not re.search(rf"\$\{{?{name}\b", text)]
    assert unused == []


@each_board
def test_no_two_panels_have_one_title(board: Json) -> None:
    assert len({panel["title"] for panel in board["panels"]}) == len(board["panels"])


@each_panel
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: Json) -> None:
    assert panel["description"].strip()
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"


@each_panel
def test_a_rate_is_over_the_interval_that_grafana_computes(panel: Json) -> None:
    windows = [window for target in panel["targets"] for window in re.findall(r"\[(.*?)\]", target["expr"])]
    assert set(windows) <= {"$__rate_interval"}


@pytest.mark.requires("promtool")
@each_board
def test_prometheus_reads_every_query(board: Json, tmp_path: Path) -> None:
    texts = [re.sub(r"\$(\w+)", lambda name: WINDOWS.get(name[1], ".*"), text) for _, text in targets_of(board)]
    rules = [{"record": f"query:{number}", "expr": text} for number, text in enumerate(texts)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": board["uid"], "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@each_panel
def test_the_runbook_of_a_panel_exists(panel: Json) -> None:
    for page in re.findall(r"docs/runbooks/\w+\.md", panel["description"]):
        assert (ROOT / page).is_file()


@each_board
def test_every_query_is_limited_to_the_namespace_that_was_chosen(board: Json) -> None:
    assert [text for _, text in targets_of(board) if 'namespace=~"$namespace"' not in text] == []


def test_the_overview_fits_on_one_screen() -> None:
    """Grafana's rows are 38 pixels high with their gap; about 200 of a 1080-pixel screen go to bars and menus."""
    panels = BOARDS["forebay-overview"]["panels"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    assert bottom * 38 <= 1080 - 200


@each_board
def test_no_two_panels_lie_upon_each_other(board: Json) -> None:
    taken = [
        (x, y)
        for grid in (panel["gridPos"] for panel in board["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(taken) == len(set(taken))
    assert {x for x, _ in taken} == set(range(24))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
