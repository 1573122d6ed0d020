"""compose.yaml as it is written: what it names exists, what it publishes and holds is little."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.settings import GatewaySettings, InferenceSettings
from services.gateway.drain import longest

ROOT = Path(__file__).parents[3]
FOLDER = "${COMPOSE_SECRETS:-./.forebay/compose-secrets}/"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def test_our_images_have_the_projects_version(compose: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tags = {
        re.sub(r".*\$\{IMAGES_TAG:-(.*)\}.*", r"\1", service["image"])
        for service in compose["services"].values()
        if "/forebay-" in service["image"]
    }
    assert tags == {version}


def test_images_of_others_are_pinned(compose: dict[str, Any]) -> None:
    others = [service["image"] for service in compose["services"].values() if "/forebay-" not in service["image"]]
    assert len(others) == 2
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in others)


def test_every_file_that_is_mounted_exists(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith(".")
    ]
    assert mounted
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def test_only_the_gateway_is_published_and_grafana_to_this_machine(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published.keys() == {"gateway", "grafana"}
    assert published["gateway"] == ["${FOREBAY_PUBLISH:-127.0.0.1:8080}:8080"]
    assert published["grafana"][0].startswith("127.0.0.1:")


def test_a_pod_is_told_settings_that_exist_with_the_defaults_that_they_have(compose: dict[str, Any]) -> None:
    told = compose["services"]["inference"]["environment"]
    for variable, value in told.items():
        field = InferenceSettings.model_fields[variable.removeprefix("FOREBAY_").lower()]
        default = re.fullmatch(rf"\$\{{{variable}:-(.*)\}}", value)
        assert default is not None, variable
        assert default[1] in ("", field.default), variable


def test_the_gateway_is_told_settings_that_exist_and_keeps_its_own_defaults(compose: dict[str, Any]) -> None:
    told = compose["services"]["gateway"]["environment"]
    for variable, value in told.items():
        assert variable.removeprefix("FOREBAY_").removesuffix("_FILE").lower() in GatewaySettings.model_fields, variable
        if value.startswith("${"):
            assert value == f"${{{variable}:-}}"


def test_a_gateway_may_take_as_long_to_end_as_it_does(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JWT", "KEY"):
        monkeypatch.setenv(f"FOREBAY_{name}_SECRET", "x" * 32)
    default = re.fullmatch(r"\$\{FOREBAY_STOP_GRACE:-(\d+)s\}", compose["services"]["gateway"]["stop_grace_period"])
    assert default
    assert longest(GatewaySettings()) < int(default[1])


def test_the_cache_keeps_its_file_on_a_volume(compose: dict[str, Any]) -> None:
    cache = compose["services"]["cache"]
    assert cache["volumes"] == [f"cache:{cache['environment']['FOREBAY_CACHE_DIR']}"]
    assert "cache" in compose["volumes"]


def test_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_the_gpu_profile_reserves_a_device_and_memory(compose: dict[str, Any]) -> None:
    service = compose["services"]["inference-gpu"]
    reserved = service["deploy"]["resources"]["reservations"]
    assert service["profiles"] == ["gpu"]
    assert reserved["devices"] == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert reserved["memory"] == "${FOREBAY_GPU_MEMORY:-32G}"
    assert service["image"].endswith("-cuda")


def test_the_script_makes_every_secret_once(compose: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    command = [ROOT / "compose" / "make-secrets", folder]
    subprocess.run(command, check=True, capture_output=True)
    made = {file.name: file.read_text() for file in folder.iterdir()}

    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert {f"{FOLDER}{name}" for name in made} == {secret["file"] for secret in compose["secrets"].values()}
    assert again == ""
    assert {file.name: file.read_text() for file in folder.iterdir()} == made
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(len(text.strip()) >= 48 for text in made.values())
    assert made["cache-password"].strip() in made["redis-url"]
