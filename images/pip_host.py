"""`python images/pip_host.py FOLDER`: this machine's pip settings, as a folder to be mounted while an image is built.

Companies install from an index of their own, with a certificate authority of their own; a build in a container knows
of neither. What pip says that it uses (`pip config list`: files and PIP_* variables) becomes FOLDER/pip.conf, and the
local files it names are laid beside it. Nothing of it ends in an image: the Dockerfiles mount the folder for single
steps.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MOUNT = "/run/pip-host"
"""Where the Dockerfiles mount the folder."""
SINGLE = ("index-url", "proxy", "timeout", "default-timeout", "retries", "no-index")
LISTS = ("extra-index-url", "trusted-host")
FILES = ("cert", "client-cert")
PATHS = ("find-links", "constraint")
SECTIONS = ("global", "install", "download", ":env:")
"""In the order in which a later one wins; what pip keeps for its other commands has no part in a build."""


def read_settings(listing: str) -> dict[str, str]:
    """The settings that count, by name, out of what `pip config list` prints."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        key, equals, value = line.partition("=")
        section, dot, name = key.partition(".")
        if equals and dot and section in found:
            found[section][name] = str(ast.literal_eval(value))
    merged = {name: value for section in SECTIONS for name, value in found[section].items()}
    return {name: value for name, value in merged.items() if name in (*SINGLE, *LISTS, *FILES, *PATHS)}


def lay_out(settings: dict[str, str], folder: Path) -> str:
    """Copies what is local into `folder` and returns the text of a pip.conf that names it as it will be mounted."""
    lines = ["[global]"]
    for name, value in settings.items():
        if name in FILES:
            words = [_into(Path(value), folder, name)]
        elif name in PATHS:
            words = [
                word if _is_remote(word) else _into(_local(word), folder, f"{name}-{number}")
                for number, word in enumerate(value.split())
            ]
        else:
            words = list(_reachable(name, value.split()))
        if words:
            lines.append(f"{name} = {chr(10).join(f'  {word}' for word in words).strip()}")
    return "\n".join(lines) + "\n"


def _reachable(name: str, words: list[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("file:"):
            # Often gigabytes, and only ever a shortcut to what the main index has as well.
            sys.stderr.write(f"pip's {name} {word} is a folder of this machine and is left out.\n")
        else:
            yield word


def _is_remote(word: str) -> bool:
    return "://" in word and not word.startswith("file:")


def _local(word: str) -> Path:
    return Path(word.removeprefix("file://")).expanduser()


def _into(path: Path, folder: Path, name: str) -> str:
    target = folder / name
    if path.is_dir():
        shutil.copytree(path, target, copy_function=_link)
    else:
        shutil.copyfile(path, target)
    return f"{MOUNT}/{name}"


def _link(source: str, target: str) -> None:
    """A hard link costs nothing, which matters for wheels of gigabytes; across file systems it has to be a copy."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def main(arguments: list[str]) -> int:
    """The command: makes the folder anew, readable by its owner only, as an index's URL may hold a password."""
    folder = Path(arguments[0])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    configuration = folder / "pip.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(lay_out(read_settings(listing), folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
