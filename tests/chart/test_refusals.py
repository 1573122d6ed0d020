"""Typing errors and contradictions are refused, with a sentence that says what to write."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.rendering import Refused, model, render

VLLM = {"engine": "vllm", "source": "org/big", "profile": "nvidia-gpu"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"gateways": {}}, "'gateways' not allowed"),
        ({"gateway": {"replica": 2}}, "'replica' not allowed"),
        ({"gateway": {"replicas": "two"}}, "got string, want integer"),
        ({"gateway": {"logLevel": "verbose"}}, "value must be one of 'DEBUG', 'INFO'"),
        ({"global": {"image": {"registri": "x"}}}, "'registri' not allowed"),
        ({"timeouts": {"request": 0}}, "minimum: got 0, want 1"),
        ({"timeouts": {"requests": 30}}, "'requests' not allowed"),
        ({"redis": {"external": {"url": "redis://user:password@host"}}}, "does not match pattern"),
        ({"mesh": {"linkerd": {"enable": True}}}, "'enable' not allowed"),
        ({"ingress": {"controller": "ngnix"}}, "value must be one of 'nginx'"),
        ({"gateway": {"discovery": "endpoints"}}, "value must be one of 'dns', 'kubernetes'"),
        ({"gateway": {"prices": {"demo": {"prompt": 1}}}}, "'prompt' not allowed"),
        ({"gateway": {"limits": {"tokensPerDay": 0}}}, "minimum: got 0, want 1"),
        ({"gateway": {"routing": {"aliases": {"prod": {"demo": 0}}}}}, "got 0, want 0"),
        ({"gateway": {"oidc": {"issuer": "http://id.example.com"}}}, "does not match pattern"),
        ({"gateway": {"oidc": {"scopes": {"a": ["root"]}}}}, "value must be one of 'inference', 'admin'"),
        ({"gateway": {"moderation": {"failure": "ignore"}}}, "value must be one of 'closed', 'open'"),
        ({"redis": {"persistence": {"size": "1GB"}}}, "does not match pattern"),
        (model(sourc="bundled"), "'sourc' not allowed"),
        (model(source="not a source"), "does not match pattern"),
        (model(engine="tgi"), "value must be one of 'transformers', 'vllm'"),
        (model(cache={"sise": "1Gi"}), "'sise' not allowed"),
        ({"models": {"Has_Capitals": {}}}, "does not match pattern"),
        ({"models": {"a" * 41: {}}}, "does not match pattern"),
        ({"resourceProfiles": {"mine": {"gpu": 1}}}, "'gpu' not allowed"),
    ],
)
def test_a_typing_error_is_refused_by_its_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refused:
        render(values={**model(), **values})
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"models": {}}, "There is no model: name one under `models`"),
        ({"models": {"demo": {"enabled": False}}}, "There is no model"),
        (model(profile="gpu"), 'models.demo.profile is "gpu", which is not in resourceProfiles (cpu, nvidia-gpu)'),
        ({"models": {"a": {"name": "same"}, "b": {"name": "same"}}}, 'models.a and models.b are both called "same"'),
        ({"models": {"a": {}, "b": {"name": "a"}}}, 'both called "a" by callers'),
        (model(revision="main"), "models.demo.revision is for a hub id"),
        (model(dtype="float16"), "models.demo.dtype is"),
        (model(**VLLM | {"source": "bundled"}), "the small model is only in Forebay's own image"),
        (model(**VLLM | {"profile": "cpu"}), "has engine vllm and asks for no GPU. Write profile: nvidia-gpu"),
        (model(**VLLM, tensorParallelSize=2), "tensorParallelSize is 2, but the pod asks for 1 GPU"),
        (model(tensorParallelSize=2), "tensorParallelSize is 2, but the pod asks for 0 GPU"),
        (model(**VLLM, adapters={"law": "org/law"}), "models.demo.adapters are of the transformers engine"),
        (
            model(
                profile="nvidia-gpu",
                resources={"limits": {"nvidia.com/gpu": 2}},
                adapters={"law": "org/law"},
            ),
            "models.demo has adapters and is shared by several GPUs",
        ),
        (
            model(quantization="fp8"),
            'quantization is "fp8", which the transformers engine does not know. Write none, int8',
        ),
        (
            model(
                profile="nvidia-gpu",
                resources={"limits": {"nvidia.com/gpu": 2}},
                quantization="nf4",
            ),
            "models.demo.quantization is nf4 and the model is shared by several GPUs",
        ),
        (
            model(**VLLM, quantization="nf4"),
            "quantization is nf4, which is of the transformers engine. Write what vLLM",
        ),
        (model(**VLLM, vllm={"image": {"tag": "latest"}}), "models.demo.vllm.image.tag is latest"),
        (
            {
                **model(**VLLM),
                "networkPolicy": {"enabled": True},
                "observability": {"serviceMonitor": {"enabled": True}},
            },
            "Name who reads them as networkPolicy.monitoring",
        ),
        (model(image={"tag": "latest"}), "models.demo.image.tag is latest, which may be another program tomorrow"),
        (model(replicas=2, cache={"size": "9Gi"}), "Write cache.accessMode: ReadWriteMany, or replicas: 1"),
        ({"gateway": {"image": {"tag": "latest"}}}, "gateway.image.tag is latest"),
        ({"redis": {"image": {"tag": "latest"}}}, "redis.image.tag is latest"),
        ({"gateway": {"replicas": 2}}, "SQLite's file can be written by one pod only. Write database.type: postgresql"),
        ({"database": {"type": "postgresql"}}, "name a Secret that holds it as database.postgresql.existingSecret"),
        ({"redis": {"external": {"url": "redis://mine:6379"}}}, "Write redis.enabled: false, or empty redis.external"),
        ({"redis": {"enabled": False}}, "redis.enabled is false and redis.external names none"),
        (
            {"redis": {"enabled": False, "external": {"url": "redis://mine:6379", "existingSecret": "mine"}}},
            "redis.external has both url and existingSecret",
        ),
        (
            {"gateway": {"oidc": {"issuer": "https://id.example.com"}}},
            "gateway.oidc.audience is empty: a token for another service is none for this one",
        ),
        (
            {"gateway": {"routing": {"aliases": {"a": {"b": 1}, "b": {"demo": 1}}}}},
            'gateway.routing.aliases.a stands for "b", which is an alias itself',
        ),
        (
            {"gateway": {"discovery": "kubernetes", "serviceAccount": {"create": False}}},
            "Write gateway.serviceAccount.create: true, or a name",
        ),
        (
            {
                "networkPolicy": {"enabled": True, "egress": {"restricted": True}},
                "database": {"type": "postgresql", "postgresql": {"existingSecret": "mine"}},
                "gateway": {"tracing": {"url": "http://collector:4318/v1/traces"}},
            },
            "outside of the release: database.postgresql, gateway.tracing.url. Write networkPolicy.egress.rules",
        ),
        ({"route": {"enabled": True}}, "route.parentRefs names no Gateway"),
        ({"ingress": {"enabled": True}}, "ingress.hosts is empty. Write at least one host name"),
    ],
)
def test_a_contradiction_is_refused_with_what_to_write(values: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refused:
        render(values={**model(), **values})
    assert says in str(refused.value)
