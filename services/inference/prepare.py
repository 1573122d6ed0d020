"""`python -m services.inference.prepare [SOURCE]`: gets a pod's models and adapters ready, so that it starts from them.

Progress goes to stderr, one line per phase; the folders go to stdout. A model that is ready already costs no more than
the look for it.
"""

from __future__ import annotations

import argparse
import sys

from services.common.settings import InferenceSettings
from services.inference.catalogue import parse_adapters, parse_catalogue
from services.inference.engine.errors import SourceError
from services.inference.engine.source import resolve, resolve_adapter


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m services.inference.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", help="`bundled`, a GGUF file, a folder or a hub id; else FOREBAY_MODEL")
    settings = InferenceSettings()
    given = parser.parse_args(arguments).source
    try:
        models = parse_catalogue(given or settings.model)
        adapters = {} if given else parse_adapters(settings.adapters, models)
        for one in models.values():
            _say(f"resolve: {one}")
            folder = resolve(
                one, settings.home, bundled=settings.bundled_model, offline=settings.hub_offline, report=_say
            )
            sys.stdout.write(f"{folder.resolve()}\n")
        for adapter in adapters.values():
            _say(f"resolve: {adapter.source}")
            sys.stdout.write(
                f"{resolve_adapter(adapter.source, offline=settings.hub_offline, report=_say).resolve()}\n"
            )
    except (SourceError, ValueError, OSError) as error:
        _say(str(error))
        return 1
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
