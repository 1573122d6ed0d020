"""The values: what is declared is used and described, what is used is declared, and nothing generated is stale."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, ROOT, Refused, helm, text_of

GENERATE = runpy.run_path(str(ROOT / "helm" / "generate.py"))
VALUES = GENERATE["read"]((CHART / "values.yaml").read_text())
TEMPLATES = [path for path in (CHART / "templates").rglob("*") if path.is_file()]

BASE: dict[str, Any] = {
    "models": {
        "demo": {"replicas": 2, "source": "org/demo", "cache": {"size": "1Gi", "accessMode": "ReadWriteMany"}},
        "big": {"source": "org/big", "engine": "vllm", "profile": "nvidia-gpu", "hub": {"existingSecret": "hub"}},
    },
    "route": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["llm.example.com"]},
    "ingress": {"enabled": True, "hosts": ["llm.example.com"]},
    "observability": {
        "serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboards": {"enabled": True},
    },
    "networkPolicy": {"enabled": True, "monitoring": [{"podSelector": {"matchLabels": {"a": "b"}}}]},
}  # fmt: skip
"""Everything on, so that every value has something to act on."""

NEEDS: dict[str, dict[str, Any]] = {
    "redis.external": {"redis": {"enabled": False, "external": {"existingSecret": "mine"}}},
    "redis.external.url": {"redis": {"enabled": False, "external": {"existingSecret": ""}}},
    "redis.external.existingSecret": {"redis": {"enabled": False}},
    "database.postgresql": {"database": {"type": "postgresql", "postgresql": {"existingSecret": "mine"}}},
    "gateway.serviceAccount.name": {"gateway": {"serviceAccount": {"create": False}}},
    "redis.serviceAccount.name": {"redis": {"serviceAccount": {"create": False}}},
    "modelDefaults.serviceAccount.name": {"modelDefaults": {"serviceAccount": {"create": False}}},
    "modelDefaults.source": {"models": {"demo": {"source": None}}},
    "modelDefaults.replicas": {"models": {"demo": {"replicas": None}}},
    "modelDefaults.engine": {"models": {"big": {"engine": None}}},
    "modelDefaults.cache.size": {"models": {"demo": {"cache": {"size": None}}}},
    "modelDefaults.cache.existingClaim": {"models": {"demo": {"cache": {"size": None}}}},
    "modelDefaults.cache.accessMode": {"models": {"demo": {"replicas": 1, "cache": {"accessMode": None}}}},
    "modelDefaults.image.registry": {"global": {"image": {"registry": "one.example.com"}}},
    "modelDefaults.tensorParallelSize": {"models": {"big": {"resources": {"limits": {"nvidia.com/gpu": 2}}}}},
    "timeouts.engine": {"timeouts": {"request": 100}},
    "database.sqlite.size": {"database": {"type": "sqlite"}},
    "gateway.oidc": {"gateway": {"oidc": {"issuer": "https://id.example.com", "audience": ["forebay"]}}},
    "gateway.moderation": {"gateway": {"moderation": {"url": "http://guard", "existingSecret": "guard"}}},
    "gateway.semanticCache": {"gateway": {"semanticCache": {"url": "http://near", "existingSecret": "near"}}},
    "networkPolicy.egress": {"networkPolicy": {"egress": {"restricted": True}}},
    "networkPolicy.egress.apiServerPorts": {"gateway": {"discovery": "kubernetes"}},
}
"""What a value needs beside it to act, by its path or the beginning of it."""

OTHERS = {
    "modelDefaults.source": "other/model",
    "modelDefaults.sharedMemory": "9Gi",
    "modelDefaults.quantization": "awq",
    "modelDefaults.profile": "nvidia-gpu",
    "observability.serviceMonitor.interval": "7s",
    "redis.external.url": "redis://other:6379/0",
    "models": {"another": {}},
    "resourceProfiles": {"cpu": {"maxBatch": 7}},
    "gateway.extraUpstreams": ["http://10.0.0.7:8000"],
    "gateway.prices": {"demo": {"output": 1}},
    "gateway.limits.concurrentRequests": 7,
    "gateway.limits.tokensPerDay": 7,
    "gateway.limits.tokensPerMonth": 7,
    "gateway.limits.microsPerDay": 7,
    "gateway.limits.microsPerMonth": 7,
    "gateway.semanticCache.url": "http://another",
    "gateway.semanticCache.threshold": 0.5,
    "gateway.semanticCache.timeout": 0.25,
    "gateway.routing.aliases": {"prod": {"demo": 1}},
    "gateway.routing.fallbacks": {"demo": ["big"]},
    "gateway.routing.expectedModels": ["another"],
    "gateway.routing.loadBound": 2.5,
    "gateway.routing.retryBudget": 0.5,
    "gateway.input.maxMessages": 7,
    "gateway.moderation.url": "http://another",
    "gateway.oidc.issuer": "https://another.example.com",
    "gateway.oidc.audience": ["another"],
    "gateway.oidc.jwksUri": "https://another.example.com/keys",
    "gateway.oidc.scopes": {"another": ["inference"]},
    "gateway.trustedProxies": 7,
    "gateway.tracing.url": "http://another:4318/v1/traces",
    "redis.persistence.size": "7Gi",
    "networkPolicy.egress.rules": [{"ports": [{"port": 5432}]}],
    "networkPolicy.egress.apiServerPorts": [7443],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "another"}}],
    "timeouts.engine": 50,
    "timeouts.proxy": 500,
    "timeouts.drain": 500,
    "timeouts.termination": 500,
    "modelDefaults.contextLength": 77,
    "modelDefaults.weightsGiB": 7,
    "modelDefaults.startupSeconds": 77,
    "modelDefaults.tensorParallelSize": 1,
    "ingress.tls": [{"secretName": "another"}],
    "route.parentRefs": [{"name": "another"}],
    "ingress.hosts": ["another.example.com"],
    "route.hostnames": ["another.example.com"],
    "global.imagePullSecrets": [{"name": "another"}],
}
"""Another value, where none follows from the default."""


def leaves(values: list[Any] = VALUES) -> list[Any]:
    return [leaf for value in values for leaf in (leaves(value.children) if value.children else [value])]


LEAVES = {".".join(leaf.path): leaf for leaf in leaves()}


def another(path: str, leaf: Any, values: dict[str, Any]) -> Any:
    """A value that is allowed and is neither what the values say nor, where they say nothing, the default."""
    default = at(path, values, leaf.default)
    if path in OTHERS:
        return OTHERS[path]
    if "enum" in leaf.schema:
        return next(one for one in reversed(leaf.schema["enum"]) if one != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, str):
        return f"{default}another"
    if isinstance(default, dict):
        return {"another": "value"}
    inner = path.rpartition(".")[2]
    items = {
        "tolerations": {"key": "another"},
        "topologySpreadConstraints": {"maxSkew": 9, "topologyKey": "another"},
        "extraEnvFrom": {"configMapRef": {"name": "another"}},
        "extraArgs": "--another",
        "clients": {"podSelector": {}},
        "monitoring": {"podSelector": {}},
    }
    return [items[inner]]


def at(path: str, values: dict[str, Any], default: Any) -> Any:
    key, _, rest = path.partition(".")
    if key not in values:
        return default
    return at(rest, values[key], default) if rest else values[key]


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return without_none(result)


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: without_none(one) if isinstance(one, dict) else one for key, one in values.items() if one is not None}


def nested(path: str, value: Any) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    return {key: nested(rest, value) if rest else value}


@pytest.mark.parametrize("path", LEAVES)
def test_every_value_makes_a_difference(path: str) -> None:
    """To the manifests; or the combination is refused, which is one too."""
    needs = [layer for prefix, layer in NEEDS.items() if path == prefix or path.startswith(f"{prefix}.")]
    before = merged(BASE, *needs)
    after = merged(before, nested(path, another(path, LEAVES[path], before)))
    rendered = text_of(values=json.dumps(before)) if path != "redis.external.url" else ""
    try:
        assert text_of(values=json.dumps(after)) != rendered
    except Refused as refused:
        assert "schema" not in str(refused), refused  # noqa: PT017


def test_templates_use_only_what_is_declared() -> None:
    declared = {".".join(leaf.path[:depth]) for leaf in leaves() for depth in range(1, len(leaf.path) + 1)}
    used = {
        match[1]
        for path in TEMPLATES
        for match in re.finditer(r"\.Values\.([A-Za-z.]*[A-Za-z])", path.read_text())
    }  # fmt: skip
    assert used - declared == set()


def test_every_value_is_described() -> None:
    everything = [*leaves(), *VALUES]
    assert [".".join(value.path) for value in everything if not value.text] == []


@pytest.mark.parametrize(("name", "text"), GENERATE["generated"]().items())
def test_what_is_generated_is_up_to_date(name: str, text: str) -> None:
    assert (CHART / name).read_text() == text, "run `make chart-docs`"


def test_the_schema_is_closed_everywhere_but_where_kubernetes_or_the_user_names_the_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    open_objects = []

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and "additionalProperties" not in node and "properties" not in node:
                open_objects.append(path)
            for key, value in node.items():
                walk(value, f"{path}/{key}")
        elif isinstance(node, list):
            for value in node:
                walk(value, path)

    walk(schema, "")
    names = {path.rpartition("/")[2] for path in open_objects}
    kubernetes = {"affinity", "podSecurityContext", "securityContext", "resources", "items"}
    assert names <= kubernetes


def test_no_template_is_long_or_random() -> None:
    for path in TEMPLATES:
        text = path.read_text()
        assert text.count("\n") < 200, path
        for name in ("randAlpha", "randNumeric", "uuidv4", "genPrivateKey", "genCA", "now", "lookup"):
            assert not re.search(rf"\{{\{{[^}}]*\b{name}\b", text), f"{path} uses {name}"


def test_the_version_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert chart["version"] == chart["appVersion"] == version[1]


def test_the_package_has_what_it_needs_and_no_more(tmp_path: Path) -> None:
    helm("package", str(CHART), "--destination", str(tmp_path))
    (package,) = tmp_path.glob("*.tgz")
    shown = helm("show", "values", str(package))
    assert shown.strip() == (CHART / "values.yaml").read_text().strip()
    rendered = helm("template", "forebay", str(package), f"--values={CHART}/values-production.yaml")
    assert "kind: PrometheusRule" in rendered
