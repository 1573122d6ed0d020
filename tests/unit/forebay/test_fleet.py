"""Which ports and which environment each process gets."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay import checks, fleet
from forebay.state import Home
from services.common.settings import FleetSettings, GatewaySettings, InferenceSettings

Listen = Callable[[int], int]


def choose(first: int, *, gateways: int = 1, pods: int = 1, with_cache: bool = False, **ports: int) -> fleet.Ports:
    """Ports for a fleet whose gateways start at `first`, pods four and metrics eight further, unless given."""
    secrets = {"jwt_secret": "s" * 32, "key_secret": "s" * 32}
    return fleet.choose_ports(
        FleetSettings(gateways=gateways, pods=pods, metrics_port=ports.get("metrics", first + 8)),
        GatewaySettings(gateway_port=first, **secrets),
        InferenceSettings(inference_port=ports.get("inference", first + 4)),
        with_cache=with_cache,
    )


def test_one_of_each_gets_the_ports_that_were_set(row_of_ports: int) -> None:
    first = row_of_ports
    assert choose(first) == fleet.Ports((first,), (first + 4,), (first + 8,), (first + 9,), None)


def test_several_get_the_next_ports_and_gateways_the_first_metrics_ports(row_of_ports: int) -> None:
    first = row_of_ports
    ports = choose(first, gateways=2, pods=2)
    assert ports.gateways == (first, first + 1)
    assert ports.pods == (first + 4, first + 5)
    assert ports.gateway_metrics == (first + 8, first + 9)
    assert ports.pod_metrics == (first + 10, first + 11)


def test_a_following_port_that_is_taken_is_skipped(row_of_ports: int, listen: Listen) -> None:
    listen(row_of_ports + 1)
    assert choose(row_of_ports, gateways=2).gateways == (row_of_ports, row_of_ports + 2)


def test_kinds_that_would_overlap_step_aside(row_of_ports: int) -> None:
    first = row_of_ports
    ports = choose(first, gateways=3, pods=2, inference=first + 1, metrics=first + 2)
    every = [*ports.gateways, *ports.pods, *ports.gateway_metrics, *ports.pod_metrics]
    assert len(set(every)) == len(every) == 10
    assert (ports.gateways[0], ports.pods[0], ports.gateway_metrics[0]) == (first, first + 1, first + 2)


@pytest.mark.parametrize(
    ("offset", "setting"), [(0, "FOREBAY_GATEWAY_PORT"), (4, "FOREBAY_INFERENCE_PORT"), (8, "FOREBAY_METRICS_PORT")]
)
def test_a_first_port_that_is_taken_is_one_sentence(
    row_of_ports: int, listen: Listen, offset: int, setting: str
) -> None:
    port = listen(row_of_ports + offset)
    with pytest.raises(checks.Refused) as caught:
        choose(row_of_ports)
    message = str(caught.value)
    assert f"Port {port} " in message
    assert setting in message
    assert f"pid {os.getpid()}" in message
    assert "\n" not in message


def test_two_settings_that_name_one_port_are_refused(row_of_ports: int) -> None:
    with pytest.raises(checks.Refused, match="FOREBAY_GATEWAY_PORT and FOREBAY_INFERENCE_PORT both name"):
        choose(row_of_ports, inference=row_of_ports)


def test_the_cache_takes_a_port_that_is_free(row_of_ports: int) -> None:
    port = choose(row_of_ports, with_cache=True).cache
    assert port is not None
    assert checks.is_free("127.0.0.1", port)


def test_ports_end_at_65535() -> None:
    with pytest.raises(checks.Refused, match="not 5 free ports"):
        fleet.next_free("127.0.0.1", 65533, 5, set())


def test_children_find_the_secrets_in_files(home: Home) -> None:
    env = fleet.environment({}, home, {"m": "bundled"})
    assert Path(env["FOREBAY_JWT_SECRET_FILE"]) == home.secret_file("jwt_secret")
    assert "FOREBAY_JWT_SECRET" not in env


def test_a_secret_that_the_operator_gives_is_left_alone(home: Home) -> None:
    env = fleet.environment({"FOREBAY_JWT_SECRET": "x" * 32}, home, {"m": "bundled"})
    assert "FOREBAY_JWT_SECRET_FILE" not in env


def test_without_a_database_url_the_database_lies_in_the_home(home: Home) -> None:
    assert fleet.environment({}, home, {})["FOREBAY_DATABASE_URL"] == f"sqlite:///{home.path}/forebay.db"


def test_a_database_url_of_the_operator_is_left_alone(home: Home) -> None:
    given = {"FOREBAY_DATABASE_URL": "postgresql://db/forebay"}
    assert fleet.environment(given, home, {})["FOREBAY_DATABASE_URL"] == "postgresql://db/forebay"


def test_requests_get_less_grace_here_unless_the_operator_says_otherwise(home: Home) -> None:
    assert fleet.environment({}, home, {})["FOREBAY_SHUTDOWN_GRACE"] == "6"
    assert fleet.environment({"FOREBAY_SHUTDOWN_GRACE": "30"}, home, {})["FOREBAY_SHUTDOWN_GRACE"] == "30"


def test_each_pod_has_its_own_ports_and_log(home: Home) -> None:
    ports = fleet.Ports((8080,), (8000, 8001), (9090,), (9091, 9092), None)
    first, second = fleet.pods(home, ports, "127.0.0.1", {})
    assert (first.name, second.name) == ("pod-1", "pod-2")
    assert (first.env["FOREBAY_INFERENCE_PORT"], second.env["FOREBAY_INFERENCE_PORT"]) == ("8000", "8001")
    assert (first.metrics_url, second.metrics_url) == ("http://127.0.0.1:9091/metrics", "http://127.0.0.1:9092/metrics")
    assert first.log != second.log


def test_several_pods_share_the_cores_and_one_has_them_all(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet.os, "sched_getaffinity", lambda _pid: set(range(8)))
    two = fleet.pods(home, fleet.Ports((1,), (2, 3), (4,), (5, 6), None), "127.0.0.1", {})
    one = fleet.pods(home, fleet.Ports((1,), (2,), (4,), (5,), None), "127.0.0.1", {})
    assert [spec.env.get("OMP_NUM_THREADS") for spec in (*two, *one)] == ["4", "4", None]


def test_each_gateway_knows_all_pods_and_the_one_cache(home: Home) -> None:
    ports = fleet.Ports((8080, 8081), (8000, 8001), (9090, 9091), (9092, 9093), None)
    gateways = fleet.gateways(home, ports, "0.0.0.0", {}, "redis://x")
    assert {spec.env["FOREBAY_UPSTREAMS"] for spec in gateways} == {"http://127.0.0.1:8000,http://127.0.0.1:8001"}
    assert {spec.env["FOREBAY_REDIS_URL"] for spec in gateways} == {"redis://x"}
    assert [spec.env["FOREBAY_GATEWAY_PORT"] for spec in gateways] == ["8080", "8081"]


def test_a_shared_log_file_becomes_one_for_each_process(home: Home) -> None:
    ports = fleet.Ports((8080,), (8000,), (9090,), (9091,), None)
    (pod,) = fleet.pods(home, ports, "127.0.0.1", {"FOREBAY_LOG_FILE": "/var/log/forebay.log"})
    assert pod.env["FOREBAY_LOG_FILE"] == "/var/log/forebay.pod-1.log"


def test_the_caches_configuration_is_private_and_asks_for_a_password(home: Home) -> None:
    spec = fleet.cache(home, 6390, {})
    configuration = home.run / "cache.conf"
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    assert f"requirepass {fleet.cache_password(home)}" in configuration.read_text()
    assert fleet.cache_password(home) not in " ".join([*spec.argv, spec.url])


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_an_address_to_listen_on_becomes_one_to_call(host: str, url: str) -> None:
    assert fleet.base_url(host, 80) == url
