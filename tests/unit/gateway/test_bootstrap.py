"""The first start, the second, and what happens when the key file is lost."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts, open_accounts
from services.gateway.accounts.credentials import mint_key
from services.gateway.bootstrap import bootstrap, bootstrap_given, main
from tests.unit.gateway.conftest import JWT_SECRET, KEY_SECRET, CountingHasher


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.accounts.database.password_hasher", CountingHasher)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "demo.key"


@contextmanager
def opened(settings: GatewaySettings) -> Iterator[Accounts]:
    accounts = open_accounts(settings.database_url, pool_size=1, key_secret=KEY_SECRET, hasher=CountingHasher())
    yield accounts
    accounts.close()


def test_the_first_start_makes_an_admin_of_the_platform(settings: GatewaySettings, key_file: Path) -> None:
    made = bootstrap(settings, key_file)
    assert made.admin_password is not None
    with opened(settings) as accounts:
        admin = accounts.users.verify(made.admin_username, made.admin_password)
    assert admin is not None
    assert (admin.username, admin.tenant.name, admin.role) == ("admin", "platform", "admin")


def test_the_first_start_makes_a_demo_key_in_a_file_of_its_owner_alone(
    settings: GatewaySettings, key_file: Path
) -> None:
    made = bootstrap(settings, key_file)
    assert key_file.read_text().strip() == made.demo_key
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in key_file.parent.iterdir()] == ["demo.key"]
    with opened(settings) as accounts:
        key = accounts.keys.find(made.demo_key)
    assert (key.tenant.name, key.scopes) == ("demo", {"inference"})


def test_two_installations_have_different_passwords(settings: GatewaySettings, key_file: Path, tmp_path: Path) -> None:
    other = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/other.db"})
    assert bootstrap(settings, key_file).admin_password != bootstrap(other, tmp_path / "o.key").admin_password


def test_the_second_start_changes_nothing_and_shows_no_password(settings: GatewaySettings, key_file: Path) -> None:
    first = bootstrap(settings, key_file)
    second = bootstrap(settings, key_file)
    assert second.admin_password is None
    assert second.demo_key == first.demo_key
    with opened(settings) as accounts:
        assert len(accounts.keys.page()) == 1
        assert accounts.users.verify("admin", first.admin_password)


@pytest.mark.parametrize("content", [None, "", "nonsense", "fb-aaaaaaaa-" + "A" * 43])
def test_a_key_file_that_is_lost_gets_a_new_key_and_the_old_is_revoked(
    settings: GatewaySettings, key_file: Path, content: str | None
) -> None:
    first = bootstrap(settings, key_file)
    key_file.unlink() if content is None else key_file.write_text(content)
    second = bootstrap(settings, key_file)
    assert key_file.read_text().strip() == second.demo_key != first.demo_key
    with opened(settings) as accounts:
        assert accounts.keys.find(first.demo_key).revoked_at is not None
        assert accounts.keys.find(second.demo_key).revoked_at is None


def test_a_revoked_demo_key_is_replaced(settings: GatewaySettings, key_file: Path) -> None:
    first = bootstrap(settings, key_file)
    with opened(settings) as accounts:
        accounts.keys.revoke(accounts.keys.find(first.demo_key).id)
    assert bootstrap(settings, key_file).demo_key != first.demo_key


def test_other_keys_of_the_demo_tenant_are_left_alone(settings: GatewaySettings, key_file: Path) -> None:
    bootstrap(settings, key_file)
    with opened(settings) as accounts:
        _, own = accounts.keys.create("demo", "my own")
    key_file.unlink()
    bootstrap(settings, key_file)
    with opened(settings) as accounts:
        assert accounts.keys.find(own).revoked_at is None


def test_one_bootstrap_waits_for_another_of_the_same_folder(settings: GatewaySettings, key_file: Path) -> None:
    key_file.parent.mkdir()
    other = os.open(key_file.parent, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    waiting = Thread(target=bootstrap, args=(settings, key_file))
    waiting.start()
    waiting.join(0.2)
    assert not key_file.exists()
    os.close(other)
    waiting.join()
    assert key_file.exists()


def test_a_lost_admin_password_can_be_replaced(settings: GatewaySettings, key_file: Path) -> None:
    first = bootstrap(settings, key_file)
    second = bootstrap(settings, key_file, reset_admin=True)
    with opened(settings) as accounts:
        assert accounts.users.verify("admin", first.admin_password) is None
        assert accounts.users.verify("admin", second.admin_password)


def test_a_key_file_that_others_could_read_is_closed_to_them(settings: GatewaySettings, key_file: Path) -> None:
    bootstrap(settings, key_file)
    key_file.chmod(0o644)
    bootstrap(settings, key_file)
    assert key_file.stat().st_mode & 0o777 == 0o600


def test_the_command_prints_what_there_is_as_one_line_of_json(settings: GatewaySettings, key_file: Path) -> None:
    environment = {
        **os.environ,
        "FOREBAY_JWT_SECRET": JWT_SECRET,
        "FOREBAY_KEY_SECRET": KEY_SECRET,
        "FOREBAY_DATABASE_URL": settings.database_url,
    }
    command = [sys.executable, "-m", "services.gateway.bootstrap", "--key-file", str(key_file)]
    # Three at once, as several replicas would: one makes everything, all agree.
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [json.loads(run.communicate()[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert {line["demo_key"] for line in printed} == {key_file.read_text().strip()}
    passwords = [line["admin_password"] for line in printed if line["admin_password"]]
    assert len(passwords) == 1
    with opened(settings) as accounts:
        assert accounts.users.verify("admin", passwords[0])


def test_the_command_says_in_one_sentence_which_settings_are_missing(
    key_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FOREBAY_JWT_SECRET", raising=False)
    monkeypatch.setenv("FOREBAY_KEY_SECRET", "too short")
    assert main(["--key-file", str(key_file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "FOREBAY_JWT_SECRET" in said
    assert "FOREBAY_KEY_SECRET" in said
    assert "too short" not in said


def test_a_given_password_and_key_are_the_admins_and_the_demo_tenants(settings: GatewaySettings) -> None:
    key = mint_key()
    bootstrap_given(settings, "a given password", key)
    with opened(settings) as accounts:
        assert accounts.users.verify("admin", "a given password").role == "admin"
        assert accounts.keys.find(key).tenant.name == "demo"


def test_given_again_nothing_changes_even_if_the_password_was_changed_since(settings: GatewaySettings) -> None:
    key = mint_key()
    bootstrap_given(settings, "a given password", key)
    with opened(settings) as accounts:
        accounts.users.update(accounts.users.by_name("admin").id, password="a better password")
    bootstrap_given(settings, "a given password", key)
    with opened(settings) as accounts:
        assert accounts.users.verify("admin", "a better password")
        assert len(accounts.keys.page()) == 1


def test_another_given_key_takes_the_place_of_the_old(settings: GatewaySettings) -> None:
    old, new = mint_key(), mint_key()
    bootstrap_given(settings, "a given password", old)
    bootstrap_given(settings, "a given password", new)
    with opened(settings) as accounts:
        assert accounts.keys.find(old).revoked_at is not None
        assert accounts.keys.find(new).revoked_at is None


def test_a_given_key_that_was_revoked_stays_revoked(settings: GatewaySettings) -> None:
    key = mint_key()
    bootstrap_given(settings, "a given password", key)
    with opened(settings) as accounts:
        accounts.keys.revoke(accounts.keys.find(key).id)
    bootstrap_given(settings, "a given password", key)
    with opened(settings) as accounts:
        assert accounts.keys.find(key).revoked_at is not None
        assert len(accounts.keys.page()) == 1


@pytest.mark.parametrize(
    ("password", "key"), [("", "good"), ("a given password", "nonsense"), ("a given password", "")]
)
def test_what_is_no_password_or_no_key_is_refused(settings: GatewaySettings, password: str, key: str) -> None:
    with pytest.raises(ValueError, match="given"):
        bootstrap_given(settings, password, mint_key() if key == "good" else key)


def test_the_command_prints_nothing_of_what_it_was_given(settings: GatewaySettings, tmp_path: Path) -> None:
    key = mint_key()
    (tmp_path / "password").write_text("a given password\n")
    (tmp_path / "key").write_text(f"{key}\n")
    environment = {
        **os.environ,
        "FOREBAY_JWT_SECRET": JWT_SECRET,
        "FOREBAY_KEY_SECRET": KEY_SECRET,
        "FOREBAY_DATABASE_URL": settings.database_url,
    }
    files = [f"--given-password={tmp_path}/password", f"--given-key={tmp_path}/key"]
    command = [sys.executable, "-m", "services.gateway.bootstrap", *files]
    # Three at once, as several replicas would: there must be one key, so that revoking it ends it.
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate()[0] for run in runs] == ["", "", ""]
    assert [run.returncode for run in runs] == [0, 0, 0]
    with opened(settings) as accounts:
        assert len(accounts.keys.page()) == 1
        assert accounts.keys.find(key) is not None


def test_the_command_says_what_is_wrong_with_what_it_was_given(
    settings: GatewaySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREBAY_JWT_SECRET", JWT_SECRET)
    monkeypatch.setenv("FOREBAY_KEY_SECRET", KEY_SECRET)
    monkeypatch.setenv("FOREBAY_DATABASE_URL", settings.database_url)
    (tmp_path / "password").write_text("a given password")
    (tmp_path / "key").write_text("nonsense")
    assert main([f"--given-password={tmp_path}/password", f"--given-key={tmp_path}/key"]) == 2
    said = capsys.readouterr().err
    assert "the given key" in said
    assert "nonsense" not in said
    assert main([f"--given-password={tmp_path}/absent", f"--given-key={tmp_path}/key"]) == 2
    assert "absent" in capsys.readouterr().err
