"""HTTP/1.1 with pods: what a response's bytes mean, however they are cut, and which are refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.upstreams.http1 import MAX_HEAD, Malformed, Response, request_head

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"


def sized(length: int | str, more: str = "") -> Response:
    return Response(f"HTTP/1.1 200 OK\r\nContent-Length: {length}{more}".encode())


def test_a_head_has_a_status_and_headers_whatever_their_case() -> None:
    response = Response(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After:  7 \r\ncontent-length: 0")
    assert response.status == 429
    assert response.headers.get("Retry-After") == response.headers.get("retry-after") == "7"
    assert response.headers.get("X-Absent") is None
    assert response.ended


def test_a_header_that_stands_twice_is_one_list() -> None:
    assert sized(0, "\r\nX-Load: a\r\nx-load: b").headers.get("X-Load") == "a, b"


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    trailer=st.booleans(),
)
def test_a_chunked_body_is_the_same_however_it_is_cut(chunks: list[bytes], cuts: list[int], trailer: bool) -> None:
    data = b"".join(b"%X;x=y\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    data += b"0\r\n" + b"X-Sum: 1\r\n" * trailer + b"\r\n"
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    response, body = Response(CHUNKED), b""
    for begin, end in pairwise(places):
        assert not response.ended or begin == end == len(data)
        body += response.feed(data[begin:end])
    assert body == b"".join(chunks)
    assert response.ended
    assert response.persists


def test_a_body_with_a_length_ends_there() -> None:
    response = sized(5)
    assert response.feed(b"hel") + response.feed(b"lo") == b"hello"
    assert response.ended
    assert response.persists


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    response = Response(b"HTTP/1.1 200 OK")
    assert response.feed(b"hello") == b"hello"
    assert not response.ended
    assert response.close()
    assert not response.persists


@pytest.mark.parametrize("begun", [CHUNKED, b"HTTP/1.1 200 OK\r\nContent-Length: 9"])
def test_a_closed_connection_does_not_end_a_body_whose_end_is_told_otherwise(begun: bytes) -> None:
    response = Response(begun)
    response.feed(b"5\r\nhel")
    assert not response.close()


@pytest.mark.parametrize("data", [b"0\r\n\r\nHTTP/1.1 200", b"1\r\na\r\n0\r\n\r\nx"])
def test_a_connection_on_which_more_came_than_was_asked_for_is_not_used_again(data: bytes) -> None:
    response = Response(CHUNKED)
    response.feed(data)
    assert response.ended
    assert not response.persists
    long = sized(2)
    assert long.feed(b"abc") == b"ab"
    assert not long.persists


@pytest.mark.parametrize(
    ("head", "persists"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive", True),
    ],
)
def test_a_connection_is_kept_as_both_sides_understand_it(head: bytes, persists: bool) -> None:
    assert Response(head).persists is persists


@pytest.mark.parametrize("status", [204, 304])
def test_some_responses_have_no_body_whatever_they_say(status: int) -> None:
    assert Response(b"HTTP/1.1 %d X\r\nContent-Length: 10" % status).ended


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK",
        b"HTTP/1.1 2000 OK",
        b"SSH-2.0-OpenSSH",
        b"HTTP/1.1 200 OK\r\nno header",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(head: bytes) -> None:
    with pytest.raises(Malformed):
        Response(head)


@pytest.mark.parametrize("data", [b"x\r\n", b"-1\r\n", b"1_0\r\n", b"\r\n", b"1\r\nab\r\n", b"1" * (MAX_HEAD + 1)])
def test_chunks_that_are_not_framed_as_they_should_be_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        Response(CHUNKED).feed(data)


def test_a_request_has_its_length_where_it_has_a_body() -> None:
    head = request_head("POST", "/v1/x", "pod:8000", {"Accept": "a/b"}, 2)
    assert head == b"POST /v1/x HTTP/1.1\r\nHost: pod:8000\r\nAccept: a/b\r\nContent-Length: 2\r\n\r\n"
    assert b"Length" not in request_head("GET", "/", "pod", {}, None)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rb"])
def test_a_header_cannot_smuggle_another_in(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        request_head("GET", "/", "pod", {"X": value}, None)
