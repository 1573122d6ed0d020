"""What of this machine's pip settings is handed to a build of an image."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[3] / "images" / "pip_host.py"


@pytest.fixture(scope="module")
def pip_host() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pip_host", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_variable_wins_over_a_file_and_other_commands_settings_are_left_out(pip_host: ModuleType) -> None:
    listing = (
        ":env:.index-url='https://two.test/simple'\n"
        "global.index-url='https://one.test/simple'\n"
        "freeze.all='true'\n"
        "global.user='true'\n"
    )

    assert pip_host.read_settings(listing) == {"index-url": "https://two.test/simple"}


def test_the_certificate_is_copied_and_named_as_it_will_be_mounted(pip_host: ModuleType, tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text("CERTIFICATE")
    folder = tmp_path / "out"
    folder.mkdir()

    text = pip_host.lay_out({"cert": str(certificate)}, folder)

    assert text == "[global]\ncert = /run/pip-host/cert\n"
    assert (folder / "cert").read_text() == "CERTIFICATE"


def test_folders_of_wheels_go_along_and_addresses_stay_as_they_are(pip_host: ModuleType, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "a.whl").write_bytes(b"wheel")
    folder = tmp_path / "out"
    folder.mkdir()

    text = pip_host.lay_out({"find-links": f"{wheels} https://wheels.test/"}, folder)

    assert text.split() == ["[global]", "find-links", "=", "/run/pip-host/find-links-0", "https://wheels.test/"]
    assert (folder / "find-links-0" / "a.whl").read_bytes() == b"wheel"


def test_an_index_that_is_a_folder_is_left_out_and_said_so(
    pip_host: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = pip_host.lay_out({"extra-index-url": "file:///srv/simple https://more.test/simple"}, tmp_path)

    assert text == "[global]\nextra-index-url = https://more.test/simple\n"
    assert "file:///srv/simple" in capsys.readouterr().err


def test_the_folder_is_for_its_owner_only(pip_host: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "pip-host"

    assert pip_host.main([str(folder)]) == 0

    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "pip.conf").stat().st_mode & 0o777 == 0o600
