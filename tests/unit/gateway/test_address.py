"""Where a request comes from, and who may say so."""

from __future__ import annotations

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from services.gateway.identity.address import client_address, neighbourhood


def address(peer: str | None, *forwarded: str, proxies: int = 0) -> str:
    environ = EnvironBuilder(headers=[("X-Forwarded-For", value) for value in forwarded]).get_environ()
    environ.pop("REMOTE_ADDR", None)
    if peer is not None:
        environ["REMOTE_ADDR"] = peer
    return client_address(Request(environ), proxies)


def test_without_proxies_it_is_the_sockets_whatever_the_header_says() -> None:
    assert address("10.0.0.1", "1.2.3.4") == "10.0.0.1"


def test_behind_a_proxy_it_is_what_the_proxy_saw_and_not_what_the_client_wrote() -> None:
    assert address("10.0.0.1", "6.6.6.6, 1.2.3.4", proxies=1) == "1.2.3.4"


def test_behind_two_proxies_it_is_what_the_outer_one_saw() -> None:
    assert address("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", proxies=2) == "1.2.3.4"


def test_a_header_that_came_in_pieces_is_one() -> None:
    assert address("10.0.0.1", "6.6.6.6", "1.2.3.4", proxies=1) == "1.2.3.4"


@pytest.mark.parametrize("forwarded", [(), ("1.2.3.4",), ("",)])
def test_a_request_that_passed_fewer_proxies_is_its_sockets(forwarded: tuple[str, ...]) -> None:
    assert address("10.0.0.1", *forwarded, proxies=2) == "10.0.0.1"


@pytest.mark.parametrize("garbage", ["x", "1.2.3", "unknown", "_hidden", "1.2.3.4.5", "<script>"])
def test_what_is_no_address_is_not_one(garbage: str) -> None:
    assert address("10.0.0.1", garbage, proxies=1) == "10.0.0.1"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1.2.3.4:5678", "1.2.3.4"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_address_has_one_form(written: str, meant: str) -> None:
    assert address("10.0.0.1", written, proxies=1) == meant


def test_a_unix_socket_has_none() -> None:
    assert address(None) == address("") == "unknown"


def test_what_one_customer_has_for_itself_counts_as_one() -> None:
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff:1") != neighbourhood("2001:db8:0:1::1")
    assert neighbourhood("1.2.3.4") == "1.2.3.4"
    assert neighbourhood("unknown") == "unknown"
