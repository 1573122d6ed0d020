"""The children's log files: rotated, kept small, read for a last word."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay import logs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "pod-1.log"


def contents(log: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(log.parent.iterdir())}


def test_each_start_moves_the_old_logs_on_and_drops_the_oldest(log: Path) -> None:
    for text in ("one", "two", "three"):
        log.write_text(text)
        logs.rotate(log, keep=2)
    assert contents(log) == {"pod-1.log.1": "three", "pod-1.log.2": "two"}


def test_an_empty_log_is_not_kept(log: Path) -> None:
    log.touch()
    logs.rotate(log, keep=2)
    assert contents(log) == {"pod-1.log": ""}


def test_without_old_logs_to_keep_the_log_is_dropped(log: Path) -> None:
    log.write_text("one")
    logs.rotate(log, keep=0)
    assert contents(log) == {}


def test_a_log_that_grew_is_emptied_under_its_writer(log: Path) -> None:
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        logs.trim(log, limit=99, keep=1)
        writer.write(b"next")
    assert contents(log) == {"pod-1.log": "next", "pod-1.log.1": "x" * 100}


def test_a_log_within_its_limit_stays(log: Path) -> None:
    log.write_text("x" * 100)
    logs.trim(log, limit=100, keep=1)
    assert list(contents(log)) == ["pod-1.log"]


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("first\nlast\n\n  \n", "last"),
        ('first\n{"level": "ERROR", "message": "no memory"}\n', "no memory"),
        ('{"level": "ERROR"}', '{"level": "ERROR"}'),
        ("x" * 20000 + "\nlast", "last"),
        ("", ""),
    ],
)
def test_the_last_word_is_the_last_line_that_says_something(log: Path, text: str, last: str) -> None:
    log.write_text(text)
    assert logs.last_line(log) == last


def test_a_log_that_is_missing_says_nothing(log: Path) -> None:
    assert logs.last_line(log) == ""
