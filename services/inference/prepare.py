"""`python -m services.inference.prepare [SOURCE]`: gets a model's files ready, so that pods start from them.

Progress goes to stderr, one line per phase; the folder goes to stdout. A model that is ready already costs no more than
the look for it.
"""

from __future__ import annotations

import argparse
import sys

from services.common.settings import InferenceSettings
from services.inference.catalogue import parse_catalogue
from services.inference.engine.errors import SourceError
from services.inference.engine.source import resolve


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m services.inference.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", help="`bundled`, a GGUF file, a folder or a hub id; else FOREBAY_MODEL")
    settings = InferenceSettings()
    source = parser.parse_args(arguments).source or settings.model
    try:
        sources = parse_catalogue(source).values()
        for one in sources:
            _say(f"resolve: {one}")
            folder = resolve(
                one, settings.home, bundled=settings.bundled_model, offline=settings.hub_offline, report=_say
            )
            sys.stdout.write(f"{folder.resolve()}\n")
    except (SourceError, ValueError, OSError) as error:
        _say(str(error))
        return 1
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
