"""Every preset and every combination of `ci/`: linted, rendered the same by each Helm and each time, and valid."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import utils
from referencing import Registry, Resource

from tests.chart.rendering import CHART, COMBINATIONS, PRESETS, Refused, helm, render, text_of

EVERY = (*PRESETS, *COMBINATIONS)
VERSIONS = ("1.31.0", kubernetes_validate.latest_version())
SCHEMAS = Path(__file__).parent / "schemas"


@functools.cache
def validator(kind: str, api: str, version: str) -> Any:
    """As `kubernetes_validate.validate` makes it, but once for all manifests of a kind."""
    own = SCHEMAS / f"{kind.lower()}.json"
    if own.exists():
        return jsonschema.Draft7Validator(json.loads(own.read_text()))
    group = re.sub(r"^([^./]+)[^/]*/", r"\1-", api)  # rbac.authorization.k8s.io/v1 is rbac-v1
    full = max(one for one in utils.all_versions() if one.startswith(f"{utils.major_minor(version)}."))
    folder = f"kubernetes-json-schema/v{full}-local-strict"
    registry: Registry[Any] = Registry()
    for file in (f"{kind.lower()}-{group}.json", "_definitions.json"):
        registry = Resource.from_contents(utils.schema_contents(f"{folder}/{file}", version)) @ registry
    schema = utils.schema_contents(f"{folder}/{kind.lower()}-{group}.json", version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


def test_there_are_presets_and_many_combinations() -> None:
    assert PRESETS == ("values-cpu-demo.yaml", "values-production.yaml", "values-single-gpu.yaml")
    assert len(COMBINATIONS) >= 12


@pytest.mark.parametrize("file", EVERY)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(file: str, version: str) -> None:
    for manifest in render(file, kubernetes=version).manifests:
        errors = validator(manifest["kind"], manifest["apiVersion"], version).iter_errors(manifest)
        where = f"{manifest['kind']} {manifest['metadata']['name']}"
        assert [f"{where}: {error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("file", EVERY)
def test_rendering_twice_gives_the_same_bytes(file: str) -> None:
    first = text_of(file)
    text_of.cache_clear()
    assert text_of(file) == first


@pytest.mark.tools("helm3")
@pytest.mark.parametrize("file", EVERY)
def test_helm_3_renders_what_helm_4_does(file: str) -> None:
    four, three = render(file), render(file, program="helm3")
    assert sorted(map(repr, four.manifests)) == sorted(map(repr, three.manifests))


@pytest.mark.parametrize("program", ["helm", pytest.param("helm3", marks=pytest.mark.tools("helm3"))])
def test_helm_finds_nothing_to_complain_about(program: str) -> None:
    for file in EVERY:
        helm("lint", "--strict", str(CHART), f"--values={CHART / file}", program=program)


@pytest.mark.parametrize("file", EVERY)
def test_no_two_objects_share_a_name(file: str) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in render(file).manifests]
    assert len(names) == len(set(names))
    assert [name for _, name in names if len(name) > 63] == []


@pytest.mark.parametrize("file", EVERY)
def test_every_object_says_whose_it_is(file: str) -> None:
    for manifest in render(file).manifests:
        if manifest["metadata"]["name"] == "forebay-extra":
            continue
        labels = manifest["metadata"]["labels"]
        assert {"name", "instance", "component", "part-of", "version", "managed-by"} <= {
            key.removeprefix("app.kubernetes.io/") for key in labels
        }
        assert manifest["metadata"]["namespace"] == "llm"


def test_an_older_kubernetes_is_refused() -> None:
    with pytest.raises(Refused, match=r"requires kubeVersion: >=1\.31"):
        render("values-cpu-demo.yaml", kubernetes="1.30.9")


def test_the_notes_have_the_next_command_to_type() -> None:
    for file in EVERY:
        printed = helm("install", "forebay", str(CHART), "--dry-run=client", f"--values={CHART / file}")
        notes = printed.partition("NOTES:")[2]
        assert "helm test forebay -n default" in notes
        assert "get secret" in notes
        assert "/v1/chat/completions" in notes
        assert "<no value>" not in notes
        assert "%!" not in notes


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("Deployment", lambda one: one["spec"].update(replica=1)),
        ("ServiceMonitor", lambda one: one["spec"]["endpoints"][0].update(intervall="1s")),
        ("HTTPRoute", lambda one: one["spec"]["rules"][0]["timeouts"].update(request="60")),
        ("PrometheusRule", lambda one: one["spec"]["groups"][0]["rules"][0].pop("expr")),
    ],
)
def test_the_schemas_see_what_is_wrong(kind: str, spoil: Any) -> None:
    manifest = copy.deepcopy(render("values-production.yaml").of_kind(kind)[0])
    check = validator(kind, manifest["apiVersion"], "1.31.0")
    assert check.is_valid(manifest)
    spoil(manifest)
    assert not check.is_valid(manifest)
