"""skaffold.yaml against what it names: skaffold itself is not to be had everywhere."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FILE: dict[str, Any] = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
PROFILES = {profile["name"]: profile for profile in FILE["profiles"]}
SETUPS = [(), ("dev",), ("gpu",), ("mesh",), ("dev", "mesh")]

# The part of schema v4beta13 that the file uses. A key that is not listed here is a typing error, or extends the table.
# A list stands for each of its entries, a name for its own table; None is a value, and a map whose keys are free.
SCHEMA: dict[str, dict[str, str | None]] = {
    "Config": {
        "apiVersion": None,
        "kind": None,
        "metadata": "Metadata",
        "build": "Build",
        "deploy": "Deploy",
        "portForward": "PortForward",
        "profiles": "Profile",
    },
    "Metadata": {"name": None},
    "Build": {"tagPolicy": "TagPolicy", "local": "Local", "artifacts": "Artifact"},
    "TagPolicy": {"gitCommit": "GitCommit"},
    "GitCommit": {"variant": None, "prefix": None, "ignoreChanges": None},
    "Local": {"useBuildkit": None, "push": None, "concurrency": None},
    "Artifact": {"image": None, "context": None, "docker": "Docker", "sync": "Sync"},
    "Docker": {"dockerfile": None, "buildArgs": None, "target": None},
    "Sync": {"manual": "SyncRule"},
    "SyncRule": {"src": None, "dest": None, "strip": None},
    "Deploy": {"statusCheckDeadlineSeconds": None, "helm": "Helm"},
    "Helm": {"releases": "Release", "flags": None},
    "Release": {
        "name": None,
        "namespace": None,
        "createNamespace": None,
        "chartPath": None,
        "valuesFiles": None,
        "setValues": None,
        "setValueTemplates": None,
        "wait": None,
    },
    "PortForward": {"resourceType": None, "resourceName": None, "namespace": None, "port": None, "localPort": None},
    "Profile": {"name": None, "activation": "Activation", "patches": "Patch"},
    "Activation": {"command": None, "kubeContext": None, "env": None},
    "Patch": {"op": None, "path": None, "value": None},
}


def setup(*profiles: str) -> dict[str, Any]:
    """The file as skaffold takes it with these profiles."""
    config = copy.deepcopy(FILE)
    for patch in (patch for name in profiles for patch in PROFILES[name]["patches"]):
        *way, last = patch["path"].strip("/").split("/")
        place: Any = config
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        if last == "-":
            place.append(patch["value"])
        elif isinstance(place, list):
            place[int(last)] = patch["value"]
        else:
            assert (last in place) == (patch["op"] == "replace"), f"{patch['op']} {patch['path']}"
            place[last] = patch["value"]
    return config


def release(*profiles: str) -> dict[str, Any]:
    (found,) = setup(*profiles)["deploy"]["helm"]["releases"]
    return dict(found)


def unknown_keys(value: Any, table: str, place: str = "") -> list[str]:
    """The keys that the schema does not have at their place."""
    if isinstance(value, list):
        return [wrong for entry in value for wrong in unknown_keys(entry, table, place)]
    wrong = [f"{place}/{key}" for key in value if key not in SCHEMA[table]]
    for key, below in value.items():
        kind = SCHEMA[table].get(key)
        if kind is not None:
            wrong += unknown_keys(below, kind, f"{place}/{key}")
    return wrong


@pytest.mark.parametrize("profiles", SETUPS, ids="+".join)
def test_it_has_the_structure_of_its_version(profiles: tuple[str, ...]) -> None:
    assert FILE["apiVersion"] == "skaffold/v4beta13"
    assert FILE["kind"] == "Config"
    assert unknown_keys(setup(*profiles), "Config") == []


def test_it_builds_every_image_of_the_services_and_no_other() -> None:
    dockerfiles = {artifact["docker"]["dockerfile"] for artifact in FILE["build"]["artifacts"]}
    assert dockerfiles == {str(path.relative_to(ROOT)) for path in (ROOT / "services").glob("*/Dockerfile")}


def test_its_build_arguments_are_those_of_the_dockerfile() -> None:
    for artifact in setup("gpu")["build"]["artifacts"]:
        text = (ROOT / artifact["docker"]["dockerfile"]).read_text()
        known = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
        assert set(artifact["docker"].get("buildArgs", {})) <= known


@pytest.mark.parametrize("profiles", SETUPS, ids="+".join)
def test_the_chart_and_its_values_are_there(profiles: tuple[str, ...]) -> None:
    found = release(*profiles)
    assert (ROOT / found["chartPath"] / "Chart.yaml").is_file()
    assert [name for name in found["valuesFiles"] if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("profiles", SETUPS, ids="+".join)
def test_the_chart_takes_the_images_that_were_built(profiles: tuple[str, ...], tool: Callable[[str], str]) -> None:
    found = release(*profiles)
    names = {artifact["image"] for artifact in FILE["build"]["artifacts"]}
    sets = [f"{key}={value}" for key, value in found["setValues"].items()]
    for key, template in found["setValueTemplates"].items():
        variable = re.fullmatch(r"\{\{\.IMAGE_(REPO|TAG)_(\w+)\}\}", template)
        assert variable
        image = variable[2].replace("_", "-")  # as skaffold names its variables
        assert image in names
        sets.append(f"{key}={f'registry.test/{image}' if variable[1] == 'REPO' else 'built'}")
    command = [tool("helm"), "template", found["name"], str(ROOT / found["chartPath"]), "--skip-tests"]
    command += [f"--namespace={found['namespace']}", *(f"--values={ROOT / name}" for name in found["valuesFiles"])]
    command += [f"--set={text}" for text in sets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used = set(re.findall(r"image: (\S+)", done.stdout))
    assert used == {f"registry.test/{name}:built" for name in names}
    (forward,) = FILE["portForward"]
    assert re.search(rf"kind: Service\nmetadata:\n  name: {forward['resourceName']}\n", done.stdout)


def test_every_source_that_an_image_holds_is_synced_where_it_lies_in_the_image() -> None:
    for artifact in FILE["build"]["artifacts"]:
        text = (ROOT / artifact["docker"]["dockerfile"]).read_text()
        rules = artifact.get("sync", {}).get("manual", [])
        copied = set(re.findall(r"^COPY (services/\w+) \1$", text, re.MULTILINE))
        assert {rule["src"] for rule in rules} == {f"{folder}/**/*.py" for folder in copied}
        assert all(any((ROOT / folder).rglob("*.py")) for folder in copied)
        for rule in rules:
            assert f"PYTHONPATH={rule['dest']}" in text


def test_python_takes_a_synced_source_though_the_image_has_it_compiled(tmp_path: Path) -> None:
    """The values of the profile `dev`, on a source compiled as the images compile theirs."""
    values = yaml.safe_load((ROOT / "k8s" / "dev" / "values-sync.yaml").read_text())
    source = tmp_path / "said.py"
    source.write_text("word = 'old'")
    compiling = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(tmp_path)]
    subprocess.run(compiling, check=True)
    source.write_text("word = 'new'")

    def said(**environment: str) -> str:
        command = ["python3", "-c", "import said; print(said.word)"]
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).strip()

    path = "/usr/bin:/bin:/usr/local/bin"
    assert said(PATH=path) == "old"
    assert said(PATH=path, **values["gateway"]["env"], PYTHONDONTWRITEBYTECODE="1") == "new"
