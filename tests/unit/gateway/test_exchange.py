"""One HTTP exchange with one pod: its ends, good and bad."""

import errno
import socket
import threading
import time
from contextlib import closing
from typing import Any

import pytest

from services.gateway.upstreams.exchange import Broken, Exchange, Pool, Unreachable
from tests.unit.gateway.scripted_pod import Handler, scripted_pod


def post(pool: Pool, *, seconds: float = 30) -> Exchange:
    exchange = Exchange(pool, time.monotonic() + seconds)
    exchange.send("POST", "/x", {}, b"{}")
    return exchange


def streaming(*pieces: bytes, broken: bool = False) -> Any:
    def script(handler: Handler, _body: dict[str, Any]) -> None:
        handler.start_stream()
        for piece in pieces:
            handler.send_piece(piece)
        handler.break_off() if broken else handler.end_stream()

    return script


def test_a_whole_body_is_read_and_its_connection_used_again() -> None:
    with scripted_pod(lambda handler, _: handler.answer(200, b"hello")) as url:
        pool = Pool(url)
        first = post(pool)
        assert first.read() == b"hello"
        first.close()
        kept = pool.take()
        assert kept is not None
        pool.give(kept)
        second = post(pool)
        assert second.read() == b"hello"
        second.close()
        assert pool.take() is kept
        kept.close()


def test_a_streams_pieces_come_as_they_are_sent() -> None:
    with scripted_pod(streaming(b"one", b"two")) as url, closing(Pool(url)) as pool:
        exchange = post(pool)
        assert b"".join(exchange.pieces()) == b"onetwo"
        exchange.close()


def test_a_stream_that_is_cut_is_told_from_one_that_ended() -> None:
    with scripted_pod(streaming(b"one", broken=True)) as url:
        exchange = post(Pool(url))
        pieces = exchange.pieces()
        assert next(pieces) == b"one"
        with pytest.raises(Broken):
            next(pieces)
        exchange.close()


def test_a_body_shorter_than_its_length_is_broken() -> None:
    def short(handler: Handler, _body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.break_off()

    with scripted_pod(short) as url:
        exchange = post(Pool(url))
        with pytest.raises(Broken):
            exchange.read()
        exchange.close()


def test_nobody_at_the_address_is_unreachable() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable):
            post(Pool(f"http://127.0.0.1:{reserved.getsockname()[1]}"))


def test_a_pod_that_closed_an_idle_connection_is_asked_on_a_new_one() -> None:
    def answer_and_close(handler: Handler, _body: dict[str, Any]) -> None:
        handler.answer(200, b"hello")
        handler.break_off()

    with scripted_pod(answer_and_close) as url, closing(Pool(url)) as pool:
        for _ in range(2):
            exchange = post(pool)
            assert exchange.read() == b"hello"
            exchange.close()


def test_abort_ends_a_read_that_waits() -> None:
    reached, release = threading.Event(), threading.Event()

    def silent(_handler: Handler, _body: dict[str, Any]) -> None:
        reached.set()
        release.wait(30)

    with scripted_pod(silent) as url:
        exchange = Exchange(Pool(url), time.monotonic() + 30)
        threading.Thread(target=lambda: reached.wait(30) and exchange.abort()).start()
        with pytest.raises(Broken):
            exchange.send("POST", "/x", {}, b"{}")
        assert exchange.aborted
        exchange.close()
        release.set()


def test_abort_while_the_connection_is_made_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[object] = []
    with scripted_pod(lambda _handler, body: got.append(body)) as url, closing(Pool(url)) as pool:
        exchange = Exchange(pool, time.monotonic() + 30)
        connect = pool.open

        def leave() -> Any:
            exchange.abort()
            return connect()

        monkeypatch.setattr(pool, "open", leave)
        with pytest.raises(Broken):
            exchange.send("POST", "/x", {}, b"{}")
        exchange.close()
    assert got == []


def test_a_deadline_that_has_passed_is_a_timeout() -> None:
    with scripted_pod(lambda handler, _: handler.answer(200, b"late")) as url, pytest.raises(TimeoutError):
        post(Pool(url), seconds=-10)


def test_a_pod_whose_host_is_gone_is_lost_and_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel reports once its probes have had no answer; a vanished network cannot be made here."""

    def vanished(*_: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    read = threading.Event()

    def silent_after_one(handler: Handler, _body: dict[str, Any]) -> None:
        handler.start_stream()
        handler.send_piece(b"one")
        read.wait(30)

    with scripted_pod(silent_after_one) as url, closing(post(Pool(url))) as exchange:
        monkeypatch.setattr(exchange, "_limit_wait", vanished)
        with pytest.raises(Broken):
            exchange.read()
        read.set()


def test_a_connection_is_probed_while_it_waits() -> None:
    with scripted_pod(streaming(b"one")) as url:
        connection = Pool(url).open()
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
        connection.close()
