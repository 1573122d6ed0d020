"""The pods' URLs, fixed ones and those behind a name."""

import socket

import pytest

from services.gateway.upstreams.endpoint import Endpoint
from services.gateway.upstreams.resolve import RESOLVE_INTERVAL, Source, addresses


class Names:
    """A name service with a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.hosts: list[str] = ["10.0.0.1"]
        self.asked = 0
        self.broken = False

    def lookup(self, host: str, port: int) -> list[str]:
        assert (host, port) == ("pods", 8000)
        self.asked += 1
        if self.broken:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return self.hosts

    def source(self) -> Source:
        return Source(["dns+http://pods:8000", "http://fixed:8000"], lookup=self.lookup, clock=lambda: self.now)


def urls(source: Source) -> list[str]:
    return [endpoint.url for endpoint in source.endpoints()]


def test_each_address_of_a_name_is_a_pod_beside_the_fixed_ones() -> None:
    names = Names()
    names.hosts = ["10.0.0.1", "10.0.0.2", "fd00::1"]
    assert urls(names.source()) == [
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8000",
        "http://[fd00::1]:8000",
        "http://fixed:8000",
    ]


def test_a_name_is_looked_up_again_after_its_interval() -> None:
    names = Names()
    source = names.source()
    urls(source)
    names.hosts = ["10.0.0.2"]
    names.now = RESOLVE_INTERVAL - 0.1
    assert urls(source)[0] == "http://10.0.0.1:8000"
    assert names.asked == 1
    names.now = RESOLVE_INTERVAL
    assert urls(source)[0] == "http://10.0.0.2:8000"


def test_a_name_without_addresses_has_no_pods() -> None:
    names = Names()
    names.hosts = []
    assert urls(names.source()) == ["http://fixed:8000"]


def test_while_the_name_service_is_down_its_last_answer_stands() -> None:
    names = Names()
    source = names.source()
    urls(source)
    names.broken, names.now = True, 100.0
    assert urls(source)[0] == "http://10.0.0.1:8000"


def test_a_pod_that_is_named_twice_is_one() -> None:
    assert Source(["http://a:1", "http://a:1"]).endpoints() == [Endpoint("http://a:1")]


def test_the_real_name_service_knows_localhost_and_says_when_there_is_no_such_name() -> None:
    assert "127.0.0.1" in addresses("localhost", 8000)
    with pytest.MonkeyPatch.context() as patch:

        def missing(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")

        patch.setattr(socket, "getaddrinfo", missing)
        assert addresses("nowhere", 8000) == []
