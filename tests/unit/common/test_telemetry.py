"""Logs and the identity of a request."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import telemetry
from services.common.settings import CommonSettings


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], root.level = handlers, level


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("given_id", ["req-1", "a.b:c_d-e", "x" * 128])
def test_a_harmless_request_id_is_taken_over(given_id: str) -> None:
    assert telemetry.accept_request_id(given_id) == given_id


@pytest.mark.parametrize("given_id", [None, "", "x" * 129, "a b", "a\nb", 'a"b', "ü", "<script>"])
def test_any_other_request_id_is_replaced(given_id: str | None) -> None:
    assert re.fullmatch(r"req-[0-9a-f]{24}", telemetry.accept_request_id(given_id))


@given(st.none() | st.text(max_size=200))
def test_a_request_id_is_always_safe_in_a_header_and_a_log(given_id: str | None) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", telemetry.accept_request_id(given_id))


def test_a_well_formed_trace_context_is_passed_on() -> None:
    context = f"00-{'a' * 32}-{'b' * 16}-01"
    assert telemetry.accept_traceparent(context) == context


@given(st.none() | st.text(max_size=80))
def test_any_other_trace_context_starts_a_new_trace(context: str | None) -> None:
    assert re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", telemetry.accept_traceparent(context))


def test_a_log_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("gateway", CommonSettings())
    logging.getLogger("forebay.x").info("two\nlines", extra={"tokens": 3})
    (line,) = lines(capsys)
    assert {name: line[name] for name in ("service", "level", "logger", "message", "tokens")} == {
        "service": "gateway",
        "level": "INFO",
        "logger": "forebay.x",
        "message": "two\nlines",
        "tokens": 3,
    }


def test_a_log_line_carries_the_id_of_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("gateway", CommonSettings())
    token = telemetry.request_id.set("req-7")
    logging.getLogger("forebay.x").info("hello")
    telemetry.request_id.reset(token)
    assert lines(capsys)[0]["request_id"] == "req-7"


def test_an_exception_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("gateway", CommonSettings())
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("forebay.x").exception("failed")
    (line,) = lines(capsys)
    assert "ValueError: broken" in str(line["exc_info"])


def test_a_value_that_json_does_not_know_breaks_no_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("gateway", CommonSettings())
    logging.getLogger("forebay.x").info("odd", extra={"where": Path("/x"), "raw": b"\xff", "kinds": {1, 2}})
    assert lines(capsys)[0]["message"] == "odd"


def test_the_log_file_gets_the_same_lines_and_is_rotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "log.json"
    telemetry.configure_logging("gateway", CommonSettings(log_file=file, log_file_max_bytes=200, log_file_backups=1))
    for number in range(5):
        logging.getLogger("forebay.x").info("line", extra={"number": number})
    assert json.loads(file.read_text().splitlines()[-1])["number"] == 4
    assert sorted(path.name for path in file.parent.iterdir()) == ["log.json", "log.json.1"]
    assert len(lines(capsys)) == 5


def test_lines_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("gateway", CommonSettings(log_level="WARNING"))
    logging.getLogger("forebay.x").info("quiet")
    assert lines(capsys) == []
