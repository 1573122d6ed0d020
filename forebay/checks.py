"""What can be known to go wrong before anything is started, each as one sentence for the operator."""

from __future__ import annotations

import difflib
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
from pydantic import ValidationError
from pydantic_settings import SettingsError

from services.common.settings import ALL, PREFIX, CommonSettings, is_secret
from services.inference.catalogue import parse_catalogue
from services.inference.engine.source import BUNDLED

MEMORY_OF_A_POD = 700_000_000
"""Bytes a pod takes beside its weights: the interpreter, torch, a small KV cache."""
BUNDLED_MEMORY = 1_500_000_000
BUNDLED_DISK = 1_000_000_000
"""What the bundled model takes, its one-time conversion included."""
GGUF_GROWTH = 8
"""A four-bit GGUF file is read into 32-bit weights, and as many bytes are kept on disk."""
OTHER_VARIABLES = {"FOREBAY_API_KEY", "FOREBAY_REQUIRE_ALL"}
"""Variables with our prefix that are no settings: one of `forebay bench`, one of the test suite."""

Settings = TypeVar("Settings", bound=CommonSettings)


class Refused(Exception):
    """The fleet cannot be started; the text is the sentence, or several lines of them."""


def read_settings(kind: type[Settings]) -> Settings:
    """The settings of one kind, from the environment.

    Raises:
        Refused: one sentence for each variable that is wrong.
    """
    try:
        return kind()
    except ValidationError as error:
        raise Refused("\n".join(_sentence(problem["loc"], problem["msg"]) for problem in error.errors())) from None
    except OSError as error:  # a …_FILE that cannot be read
        raise Refused(f"The secret file {error.filename} cannot be read: {error.strerror}.") from None
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        raise Refused(_sentence((name[1],) if name else (), "it is not valid JSON")) from None


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    name = PREFIX + str(location[0]).upper() if location else "A setting"
    reason = message.removeprefix("Value error, ")
    return f"{name} is wrong: {reason[:1].lower()}{reason[1:]}."


def known_variables() -> set[str]:
    """The names of all environment variables that mean something."""
    names = set(OTHER_VARIABLES)
    for settings in ALL:
        for name, declared in settings.model_fields.items():
            names.add(PREFIX + name.upper())
            if is_secret(declared):
                names.add(f"{PREFIX}{name.upper()}_FILE")
    return names


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """One warning for each `FOREBAY_…` variable that no setting reads, with the name that was perhaps meant."""
    known = known_variables()
    warnings = []
    for name in sorted(name for name in environment if name.startswith(PREFIX) and name not in known):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "docs/settings.md lists those that exist."
        warnings.append(f"{name} is not a setting and has no effect: {hint}")
    return warnings


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Which process listens on the port, as far as this user may know; empty when unknown."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()}, pid {connection.pid}"
    except psutil.Error:
        pass
    return ""


def check_port(host: str, port: int, setting: str) -> None:
    """
    Raises:
        Refused: the port is taken; says by whom, and which setting moves it.
    """
    if not is_free(host, port):
        by = holder(port)
        raise Refused(
            f"Port {port} on {host} is in use{f' by another program ({by})' if by else ''}: "
            f"free it, or set {setting} to another port."
        )


def check_memory(needed: int, free: int, pods: int) -> None:
    """
    Raises:
        Refused: there is less memory than all pods together need. Both in bytes.
    """
    if free < needed:
        who, remedy = (
            ("the model needs", "") if pods == 1 else (f"{pods} pods need", "start fewer pods (FOREBAY_PODS), ")
        )
        raise Refused(
            f"Too little memory: {who} about {_gb(needed)}, {_gb(free)} are free; "
            f"{remedy}end other programs or choose a smaller FOREBAY_MODEL."
        )


def check_disk(needed: int, free: int, folder: Path) -> None:
    """
    Raises:
        Refused: there is less room on the disk than the model's conversion takes. Both in bytes.
    """
    if free < needed:
        raise Refused(
            f"Too little disk space in {folder}: about {_gb(needed)} are needed, {_gb(free)} are free; "
            "free some, or set FOREBAY_HOME to a folder on another disk."
        )


def memory_of(source: str) -> int:
    """Bytes of memory that a pod with this model takes, roughly; 0 where only the loading itself can tell."""
    if source == BUNDLED:
        return BUNDLED_MEMORY
    weights = _weights(source)
    return weights + MEMORY_OF_A_POD if weights else 0


def disk_of(source: str) -> int:
    """Bytes that preparing this model writes at most; 0 where nothing is written, or nothing is known."""
    if source == BUNDLED:
        return BUNDLED_DISK
    return _weights(source) if source.endswith(".gguf") else 0


def _weights(source: str) -> int:
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path.stat().st_size * GGUF_GROWTH
    if path.is_dir():
        return sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern))
    return 0


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be taken: the machine's, or what the container's limit leaves."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = (cgroup / "memory.current").read_text().strip()
        return min(available, int(limit) - int(used))
    except (OSError, ValueError):  # no such file, or no limit: the file says "max"
        return available


def free_disk(folder: Path) -> int:
    """Bytes free on the folder's disk."""
    return shutil.disk_usage(folder).free


def catalogue(model: str) -> dict[str, str]:
    """The sources that FOREBAY_MODEL names, by name; local ones as absolute paths, as the children work elsewhere.

    Raises:
        Refused: it does not say what to serve.
    """
    try:
        found = parse_catalogue(model)
    except ValueError as error:
        raise Refused(str(error)) from None
    return {name: _absolute(source) for name, source in found.items()}


def _absolute(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.resolve()) if source != BUNDLED and path.exists() else source


def is_set(environment: Mapping[str, str], name: str) -> bool:
    """Whether the operator gave a value; an empty one counts as none, as for all settings."""
    return bool(environment.get(name))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
