"""What is refused before anything starts, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay import checks
from services.common.settings import FleetSettings, GatewaySettings


def test_a_misspelt_variable_is_answered_with_the_name_that_was_meant() -> None:
    (warning,) = checks.unknown_variables(["FOREBAY_GATWAY_PORT", "PATH"])
    assert "FOREBAY_GATWAY_PORT" in warning
    assert "did you mean FOREBAY_GATEWAY_PORT?" in warning


def test_a_variable_like_no_other_is_answered_with_the_list() -> None:
    (warning,) = checks.unknown_variables(["FOREBAY_ZZZZZZ"])
    assert "docs/settings.md" in warning


def test_settings_and_files_of_secrets_are_known() -> None:
    known = ["FOREBAY_PODS", "FOREBAY_MODEL", "FOREBAY_JWT_SECRET", "FOREBAY_JWT_SECRET_FILE", "FOREBAY_REQUIRE_ALL"]
    assert checks.unknown_variables(known) == []


def test_only_secrets_have_a_file_form() -> None:
    assert len(checks.unknown_variables(["FOREBAY_PODS_FILE"])) == 1


def refusal(kind: type[FleetSettings] | type[GatewaySettings]) -> list[str]:
    with pytest.raises(checks.Refused) as caught:
        checks.read_settings(kind)
    return str(caught.value).splitlines()


def test_each_wrong_setting_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_PODS", "many")
    monkeypatch.setenv("FOREBAY_GATEWAYS", "0")
    lines = refusal(FleetSettings)
    assert sorted(line.split()[0] for line in lines) == ["FOREBAY_GATEWAYS", "FOREBAY_PODS"]


def test_a_wrong_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_JWT_SECRET", "hunter2")
    monkeypatch.setenv("FOREBAY_KEY_SECRET", "k" * 32)
    (line,) = refusal(GatewaySettings)
    assert line.startswith("FOREBAY_JWT_SECRET is wrong")
    assert "hunter2" not in line


def test_json_that_is_none_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_ROUTE_TIMEOUTS", "{")
    assert refusal(GatewaySettings) == ["FOREBAY_ROUTE_TIMEOUTS is wrong: it is not valid JSON."]


def test_a_file_of_a_secret_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOREBAY_JWT_SECRET_FILE", str(tmp_path / "nowhere"))
    (line,) = refusal(GatewaySettings)
    assert str(tmp_path / "nowhere") in line


def test_too_little_memory_says_how_much_is_needed_and_how_much_is_there() -> None:
    checks.check_memory(1_500_000_000, 1_500_000_000, pods=1)
    with pytest.raises(checks.Refused, match=r"the model needs about 1\.5 GB, 0\.9 GB are free"):
        checks.check_memory(1_500_000_000, 900_000_000, pods=1)


def test_too_little_memory_for_several_pods_suggests_fewer() -> None:
    with pytest.raises(checks.Refused, match=r"2 pods need about 3\.0 GB, 2\.0 GB are free; start fewer pods"):
        checks.check_memory(3_000_000_000, 2_000_000_000, pods=2)


def test_too_little_disk_says_how_much_is_needed_and_where(tmp_path: Path) -> None:
    checks.check_disk(1_000_000_000, 1_000_000_000, tmp_path)
    with pytest.raises(checks.Refused, match=rf"{tmp_path}: about 1\.0 GB are needed, 0\.1 GB are free"):
        checks.check_disk(1_000_000_000, 100_000_000, tmp_path)


def test_the_limit_of_a_container_counts_as_memory_too(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert checks.free_memory(tmp_path) == 600_000


def test_without_a_limit_the_machines_memory_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert checks.free_memory(tmp_path) > 600_000


def test_a_folder_of_weights_needs_their_size_and_a_pods_own(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    assert checks.memory_of(str(tmp_path)) == 1000 + checks.MEMORY_OF_A_POD
    assert checks.disk_of(str(tmp_path)) == 0


def test_a_gguf_file_is_unpacked_in_memory_and_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 1000)
    assert checks.memory_of(str(file)) == 8000 + checks.MEMORY_OF_A_POD
    assert checks.disk_of(str(file)) == 8000


def test_what_lies_on_the_hub_is_left_to_the_load() -> None:
    assert (checks.memory_of("org/name"), checks.disk_of("org/name")) == (0, 0)


def test_local_sources_become_absolute_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checks.catalogue("bundled,a=my,org/name") == {
        "smollm2-135m-instruct": "bundled",
        "a": str(tmp_path / "my"),
        "name": "org/name",
    }


def test_a_folder_named_bundled_does_not_hide_the_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundled").mkdir()
    monkeypatch.chdir(tmp_path)
    assert list(checks.catalogue("bundled").values()) == ["bundled"]


def test_a_catalogue_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(checks.Refused, match="two models 'a'"):
        checks.catalogue("a=bundled,a=org/name")
