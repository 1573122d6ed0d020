"""`forebay up` and `forebay status`, from the first start to the last process gone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from forebay.up import STOP_LIMIT
from tests.e2e.running import FOREBAY, HANG, Stack, Up, clean_environment, wait_until_ready
from tests.ports import free_row

ROOT = Path(__file__).parents[2]
Start = Callable[..., Up]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def assert_all_gone(family: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(family, timeout=HANG)
    assert not left


def ask(url: str, key: str, model: str) -> str:
    """The text that a gateway generates."""
    body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "temperature": 0}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=HANG) as answer:
        text: str = json.load(answer)["choices"][0]["message"]["content"]
        return text


class TestAReadyStack:
    @pytest.mark.requires("curl")
    def test_the_curl_line_works_when_it_is_pasted(self, stack: Stack) -> None:
        done = subprocess.run(stack.curl, shell=True, capture_output=True, text=True, check=True, timeout=HANG)
        assert json.loads(done.stdout)["choices"][0]["message"]["content"]

    def test_the_key_stands_in_a_file_that_only_its_owner_reads(self, stack: Stack) -> None:
        file = stack.up.home / "demo.key"
        assert file.read_text().strip() == stack.key
        assert mode(file) == 0o600

    def test_its_secrets_are_for_the_owner_alone(self, stack: Stack) -> None:
        secrets = stack.up.home / "secrets"
        assert mode(secrets) == 0o700
        assert {mode(file) for file in secrets.iterdir()} == {0o600}

    def test_no_secret_is_in_a_log_or_a_command_line(self, stack: Stack) -> None:
        secrets = [file.read_text().strip() for file in (stack.up.home / "secrets").iterdir()]
        secrets += [stack.key, stack.admin_password or ""]
        seen = "".join(file.read_text() for file in (stack.up.home / "logs").iterdir())
        seen += "".join(" ".join(process.cmdline()) for process in stack.up.family())
        assert [secret for secret in secrets if secret in seen] == []

    def test_status_lists_every_process_with_where_it_is_reached(self, stack: Stack) -> None:
        status = stack.up.status()
        rows = {row["name"]: row for row in status["processes"]}
        assert status["state"] == "ready"
        assert list(rows) == ["cache", "pod-1", "gateway-1"]
        assert {row["state"] for row in rows.values()} == {"ready"}
        assert rows["gateway-1"]["url"] == stack.url
        assert [rows[name]["role"] for name in rows] == ["cache", "pod", "gateway"]
        assert {row["pid"] for row in rows.values()} <= {process.pid for process in stack.up.family()}

    def test_every_metrics_url_of_the_status_answers(self, stack: Stack) -> None:
        urls = [row["metrics_url"] for row in stack.up.status()["processes"] if row["metrics_url"]]
        pages = [urllib.request.urlopen(url, timeout=HANG).read() for url in urls]
        assert len(pages) == 2
        assert all(b"# HELP" in page for page in pages)

    def test_status_for_people_names_the_same_processes(self, stack: Stack) -> None:
        done = subprocess.run(
            (*FOREBAY, "status"), env=stack.up.environment, capture_output=True, text=True, check=True
        )
        assert [name for name in ("cache", "pod-1", "gateway-1") if name not in done.stdout] == []

    def test_a_second_start_on_the_same_home_is_refused_in_one_sentence(self, stack: Stack, start_up: Start) -> None:
        second = start_up(stack.up.home)
        assert second.wait() == 1
        assert second.output.count("\n") == 1
        assert f"already runs on {stack.up.home} (pid {stack.up.process.pid})" in second.output


def test_a_fleet_shares_one_cache_and_one_database_and_heals(start_up: Start) -> None:
    up = start_up(gateways=2, pods=2)
    stack = wait_until_ready(up)
    rows = {row["name"]: row for row in up.status()["processes"]}
    assert list(rows) == ["cache", "pod-1", "pod-2", "gateway-1", "gateway-2"]
    answers = {ask(rows[name]["url"], stack.key, stack.model) for name in ("gateway-1", "gateway-2")}
    assert len(answers) == 1

    os.kill(rows["pod-2"]["pid"], signal.SIGKILL)
    up.wait_for(r"pod-2 +died \(killed by SIGKILL.*starts again in 1 s \(restart 1\)")
    up.wait_for(r"pod-2 +ready on ")
    healed = {row["name"]: row for row in up.status()["processes"]}
    assert {name: row["restarts"] for name, row in healed.items() if row["restarts"]} == {"pod-2": 1}
    assert healed["pod-2"]["pid"] != rows["pod-2"]["pid"]
    assert healed["pod-2"]["url"] == rows["pod-2"]["url"]

    family = up.family()
    up.press_ctrl_c()
    assert up.wait() == 0
    assert_all_gone(family)


def test_a_second_start_keeps_the_key_and_shows_no_password_again(start_up: Start) -> None:
    first = wait_until_ready(start_up())
    assert first.admin_password is not None
    first.up.press_ctrl_c()
    assert first.up.wait() == 0
    second = wait_until_ready(start_up(first.up.home))
    assert (second.key, second.admin_password) == (first.key, None)
    assert first.admin_password not in second.up.output

    # It is running now, so the hardest end is tried on it too.
    family = second.up.family()
    second.up.process.kill()
    assert_all_gone(family)
    status = subprocess.run(
        (*FOREBAY, "status", "--json"), env=second.up.environment, capture_output=True, text=True, check=False
    )
    assert (status.returncode, json.loads(status.stdout)["state"]) == (3, "not running")


def test_ctrl_c_while_the_model_loads_leaves_nothing_running(start_up: Start) -> None:
    up = start_up()
    up.wait_for(r"pod-1 +(map|pack)")
    family = up.family()
    up.press_ctrl_c()
    assert up.wait() == 0
    assert_all_gone(family)


def test_gateways_are_given_the_time_that_their_drain_takes(start_up: Start) -> None:
    """Longer than anything may take to stop without it; load balancers of a test cluster need it."""
    stack = wait_until_ready(start_up(drain_delay=STOP_LIMIT + 2))
    family = stack.up.family()
    stack.up.press_ctrl_c()
    stack.up.wait_for("Stopping")
    assert ask(stack.url, stack.key, stack.model), "what comes meanwhile is still answered"
    assert stack.up.wait() == 0
    assert "did not end in time" not in stack.up.output
    assert_all_gone(family)


@pytest.mark.requires("make")
def test_make_run_passes_ctrl_c_on(prepared_home: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(prepared_home / "models")
    first = free_row(12)
    ports = {"GATEWAY_PORT": first, "INFERENCE_PORT": first + 4, "METRICS_PORT": first + 8}
    command = ("make", "--directory", str(ROOT), f"VENV={sys.prefix}", "RUNTIME=", "run")
    up = Up(tmp_path, {f"FOREBAY_{name}": str(port) for name, port in ports.items()}, command)
    try:
        up.wait_for(r"pod-1 +(map|pack)")
        family = up.family()
        up.press_ctrl_c()
        up.wait()
        assert_all_gone(family)
        assert "Stopped after" in up.output
    finally:
        up.end()


class TestWhatCannotStart:
    def test_a_busy_port_is_one_sentence_that_says_what_to_do(self, start_up: Start) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            up = start_up(gateway_port=port)
            assert up.wait() == 1
        assert up.output.count("\n") == 1
        assert f"Port {port} on 127.0.0.1 is in use" in up.output
        assert "FOREBAY_GATEWAY_PORT" in up.output

    def test_a_missing_model_is_named_in_the_last_words(self, start_up: Start, tmp_path: Path) -> None:
        up = start_up(model=str(tmp_path / "nowhere"))
        assert up.wait() == 1
        assert f"forebay: There is no model file or folder {tmp_path}/nowhere." in up.output

    def test_too_little_memory_is_one_sentence_with_both_amounts(self, start_up: Start) -> None:
        up = start_up(pods=10_000)
        assert up.wait() == 1
        assert up.output.count("\n") == 1
        assert re.search(r"10000 pods need about 15000\.0 GB, [\d.]+ GB are free", up.output)

    def test_a_wrong_setting_is_one_sentence(self, start_up: Start) -> None:
        up = start_up(pods="many")
        assert up.wait() == 1
        assert up.output.startswith("forebay: FOREBAY_PODS is wrong: ")
        assert up.output.count("\n") == 1

    def test_a_misspelt_setting_is_warned_of(self, start_up: Start) -> None:
        up = start_up(gatway_port=1, pods="many")
        up.wait()
        assert "FOREBAY_GATWAY_PORT is not a setting and has no effect: did you mean FOREBAY_GATEWAY_PORT?" in up.output

    def test_a_home_that_cannot_be_made_is_one_sentence(self, start_up: Start, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        up = start_up(tmp_path / "file" / "home")
        assert up.wait() == 1
        assert up.output.count("\n") == 1
        assert "cannot be used" in up.output

    def test_status_without_a_stack_says_so(self, tmp_path: Path) -> None:
        done = subprocess.run(
            (*FOREBAY, "status"),
            env={**clean_environment(), "FOREBAY_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 3
        assert done.stdout == f"Not running: no `forebay up` holds {tmp_path}.\n"
