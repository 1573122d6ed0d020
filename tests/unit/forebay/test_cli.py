"""What the command says to wrong arguments and to Ctrl-C."""

import signal
import socket
import subprocess
import sys

import pytest

from forebay.cli import main


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["status", "--dance"], "--dance"),
        (["bench", "--clients", "0"], "argument --clients: 0 is less than 1"),
        (["bench", "--clients", "4", "-2"], "-2"),
        (["bench", "--requests", "0"], "argument --requests: 0 is less than 1"),
        (["bench", "--tokens", "many"], "argument --tokens"),
        (["explain"], "REQUEST-ID"),
    ],
)
def test_a_wrong_argument_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert complaint in capsys.readouterr().err


def test_a_setting_that_is_wrong_is_named_by_bench_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_METRICS_PORT", "high")
    assert main(["bench"]) == 1
    assert "FOREBAY_METRICS_PORT" in capsys.readouterr().err


def test_ctrl_c_ends_a_bench_without_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as endpoint:
        endpoint.settimeout(30)
        url = f"http://127.0.0.1:{endpoint.getsockname()[1]}/v1"
        bench = subprocess.Popen(
            [sys.executable, "-m", "forebay", "bench", "--url", url, "--key", "k", "--model", "m", "--clients", "1"],
            stderr=subprocess.PIPE,
        )
        connection, _ = endpoint.accept()  # it waits for an answer that does not come
        with connection:
            bench.send_signal(signal.SIGINT)
            assert bench.communicate(timeout=30)[1] == b""
            assert bench.returncode == 130
