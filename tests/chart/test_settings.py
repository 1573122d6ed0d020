"""The gateway's settings and the chart's values: the same defaults, nothing forgotten, and everything arrives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.common.settings import GatewaySettings
from tests.chart.rendering import GATEWAY, Manifest, Release, model, render

FIELDS = GatewaySettings.model_fields
OF_THE_CLUSTER = {
    "host", "home", "upstreams", "expected_models", "shutdown_grace", "drain_delay", "access_token_ttl", "database_url",
    "redis_url",
}  # fmt: skip
"""Follow from where the gateway runs: its volumes, the models beside it, `timeouts`."""
BY_ENV = {
    "gateway_port": "the container's own",
    "metrics_port": "the container's own",
    "log_file": "the container's log is its output",
    "log_file_backups": "the same",
    "log_file_max_bytes": "the same",
    "refresh_token_ttl": "a day suits whoever logs in at all",
    "upstream_poll_interval": "a look costs little",
    "database_pool_size": "only a server that allows few connections asks for less",
    "database_timeout": "as long as a person waits",
    "identity_ttl": "how late a revocation is",
    "identity_grace": "how long an outage of the database is bridged",
    "oidc_keys_ttl": "issuers change keys seldom",
    "oidc_refetch_interval": "guards the issuer",
    "cache_max_bytes": "far above what models answer",
    "route_timeouts": "for the guide's routes",
}
"""Settings without a value of their own, and why hardly anybody misses it; `gateway.env` sets them."""


def told(*files: str, values: Manifest | None = None) -> dict[str, str]:
    """What the gateway gets, by the names of the settings; files of secrets by their path."""
    environment = render(*files, values=values).environment(GATEWAY)
    ours = {key.removeprefix("FOREBAY_"): value for key, value in environment.items() if key.startswith("FOREBAY_")}
    return {key.removesuffix("_FILE").lower(): value for key, value in ours.items()}


def parsed(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> GatewaySettings:
    """The settings that a gateway would read."""
    for name, value in {**environment, "jwt_secret": "j" * 32, "key_secret": "k" * 32}.items():
        if not value.startswith("/run/secrets"):
            monkeypatch.setenv(f"FOREBAY_{name.upper()}", value)
    return GatewaySettings()


def test_what_no_value_sets_is_as_without_the_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = told(values=model())
    settings = parsed(environment, monkeypatch)
    for name in environment.keys() - OF_THE_CLUSTER - {"jwt_secret", "key_secret"}:
        assert getattr(settings, name) == FIELDS[name].default, name


def test_every_setting_has_a_value_or_a_reason_to_have_none() -> None:
    existing = {"database": {"type": "postgresql", "postgresql": {"existingSecret": "outside"}}}
    former = {"secrets": {"keys": {"jwtFormerSecrets": "jwt-before"}}}
    oidc = {"gateway": {"oidc": {"jwksUri": "https://keys.example.com/jwks"}}}
    set_by_values = told("ci/gateway-values.yaml", values={**existing, **former, **oidc}).keys()
    assert FIELDS.keys() - set_by_values == BY_ENV.keys()


def test_every_value_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not text: a large number, JSON within YAML, a list."""
    settings = parsed(told("ci/gateway-values.yaml"), monkeypatch)
    assert settings.tokens_per_minute == 5_000_000_000
    assert settings.prices["small"].cached_input == pytest.approx(settings.prices["small"].input / 10)
    assert settings.aliases == {"prod": {"small": 90, "large": 10}}
    assert settings.fallbacks == {"large": ["small"]}
    assert settings.expected_models == ["large", "small"]
    assert settings.oidc_audience == ["forebay", "forebay-web"]
    assert settings.oidc_scopes == {"llm-users": ["inference"], "llm-admins": ["inference", "admin"]}
    assert settings.oidc_tenants["*"] == "everybody"
    assert (settings.strip_html, settings.moderation_failure) == (True, "open")
    assert (settings.hold_timeout, settings.breaker_pause) == (0, 0.5)


def test_a_model_is_expected_under_each_of_its_names_though_no_pod_runs() -> None:
    values = {"models": {"a": {"replicas": 0}, "b": {"name": "B.1", "adapters": {"law": "org/law"}}}}
    assert told(values=values)["expected_models"] == "a,B.1,B.1:law"
    assert told("ci/many-models-values.yaml")["expected_models"] == "asleep,shown-as-is,two"


@pytest.mark.parametrize(
    ("values", "proxies"),
    [
        ({}, "0"),
        ({"ingress": {"enabled": True, "hosts": ["llm.example.com"]}}, "1"),
        ({"route": {"enabled": True, "parentRefs": [{"name": "public"}]}}, "1"),
        ({"ingress": {"enabled": True, "hosts": ["a.example.com"]}, "gateway": {"trustedProxies": 0}}, "0"),
        ({"gateway": {"trustedProxies": 2}}, "2"),
    ],
)
def test_the_clients_address_is_what_the_proxy_in_front_saw(values: dict[str, Any], proxies: str) -> None:
    assert told(values={**model(), **values})["trusted_proxies"] == proxies


def test_a_secret_is_read_from_its_file_and_never_stands_in_the_configmap() -> None:
    release = render("ci/gateway-values.yaml")
    assert (
        mounted(release)
        >= {
            "FOREBAY_MODERATION_KEY_FILE": ("outside-guard", "token"),
            "FOREBAY_SEMANTIC_CACHE_KEY_FILE": ("outside-embeddings", "api-key"),
        }.items()
    )
    former = mounted(render("ci/existing-secrets-values.yaml"))
    assert ("FOREBAY_JWT_FORMER_SECRETS_FILE", ("outside-secrets", "jwt-before")) in former
    text = json.dumps(release.one("ConfigMap", GATEWAY))
    assert "token" not in text.replace("TOKENS_PER", "").replace("ACCESS_TOKEN_TTL", "").replace("MAX_TOKENS", "")


def mounted(release: Release) -> Any:
    """The settings that are files, each with the Secret and the key that the file is."""
    volumes = {one["name"]: one["secret"] for one in release.pod(GATEWAY)["spec"]["volumes"] if "secret" in one}
    files = {
        f"{mount['mountPath']}/{item['path']}": (volumes[mount["name"]]["secretName"], item["key"])
        for mount in release.container(GATEWAY)["volumeMounts"]
        if mount["name"] in volumes
        for item in volumes[mount["name"]]["items"]
    }
    environment = release.environment(GATEWAY)
    return {name: files[value] for name, value in environment.items() if name.endswith("_FILE")}.items()
