"""Settings: where a value comes from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common import settings
from services.common.settings import CommonSettings, GatewaySettings

SECRET = "s" * 32


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("FOREBAY_JWT_SECRET", SECRET)
    monkeypatch.setenv("FOREBAY_KEY_SECRET", SECRET)
    return monkeypatch


def test_a_secret_may_come_from_a_file(gateway: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("f" * 40 + "\n")
    gateway.delenv("FOREBAY_JWT_SECRET")
    gateway.setenv("FOREBAY_JWT_SECRET_FILE", str(tmp_path / "secret"))
    assert GatewaySettings().jwt_secret.get_secret_value() == "f" * 40


def test_the_file_counts_where_both_are_given(gateway: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("f" * 40)
    gateway.setenv("FOREBAY_JWT_SECRET_FILE", str(tmp_path / "secret"))
    assert GatewaySettings().jwt_secret.get_secret_value() == "f" * 40


def test_an_empty_file_variable_counts_as_not_set(gateway: pytest.MonkeyPatch) -> None:
    gateway.setenv("FOREBAY_JWT_SECRET_FILE", "")
    assert GatewaySettings().jwt_secret.get_secret_value() == SECRET


def test_what_is_no_secret_cannot_come_from_a_file(gateway: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("1234")
    gateway.setenv("FOREBAY_GATEWAY_PORT_FILE", str(tmp_path / "port"))
    assert GatewaySettings().gateway_port == 8080


def test_there_is_no_default_secret() -> None:
    with pytest.raises(ValidationError) as caught:
        GatewaySettings()
    assert {error["loc"][0] for error in caught.value.errors()} == {"jwt_secret", "key_secret"}


def test_a_short_secret_is_refused(gateway: pytest.MonkeyPatch) -> None:
    gateway.setenv("FOREBAY_KEY_SECRET", "short")
    with pytest.raises(ValidationError):
        GatewaySettings()


def test_a_secret_is_not_shown(gateway: pytest.MonkeyPatch) -> None:
    assert SECRET not in repr(GatewaySettings())


def test_upstreams_are_separated_by_commas(gateway: pytest.MonkeyPatch) -> None:
    gateway.setenv("FOREBAY_UPSTREAMS", "http://a:1/, http://b:2,")
    assert GatewaySettings().upstreams == ["http://a:1", "http://b:2"]


def test_route_timeouts_are_json(gateway: pytest.MonkeyPatch) -> None:
    gateway.setenv("FOREBAY_ROUTE_TIMEOUTS", '{"/generate": 30}')
    assert GatewaySettings().route_timeouts == {"/generate": 30.0}


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_METRICS_PORT", "")
    assert CommonSettings().metrics_port == 9090


@pytest.mark.parametrize(("name", "value"), [("METRICS_PORT", "0"), ("METRICS_PORT", "65536"), ("LOG_LEVEL", "loud")])
def test_an_impossible_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FOREBAY_{name}", value)
    with pytest.raises(ValidationError):
        CommonSettings()


def test_a_log_level_may_be_written_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_LOG_LEVEL", "debug")
    assert CommonSettings().log_level == "DEBUG"


@pytest.mark.parametrize("kind", settings.ALL, ids=lambda kind: kind.__name__)
def test_every_setting_says_what_it_is_for(kind: type[CommonSettings]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


class TestAliases:
    def test_each_stands_for_models_by_weight(self, gateway: pytest.MonkeyPatch) -> None:
        gateway.setenv("FOREBAY_ALIASES", '{"prod": {"a": 90, "b": 10}}')
        assert GatewaySettings().aliases == {"prod": {"a": 90, "b": 10}}

    @pytest.mark.parametrize(
        ("aliases", "said"),
        [
            ('{"prod": {}}', "the alias 'prod' needs models, each with a weight above zero"),
            ('{"prod": {"a": 0}}', "the alias 'prod' needs models, each with a weight above zero"),
            ('{"prod": {"next": 1}, "next": {"a": 1}}', "the alias 'prod' stands for 'next', which is an alias itself"),
        ],
    )
    def test_what_cannot_be_chosen_by_is_refused(self, gateway: pytest.MonkeyPatch, aliases: str, said: str) -> None:
        gateway.setenv("FOREBAY_ALIASES", aliases)
        with pytest.raises(ValidationError, match=said):
            GatewaySettings()
