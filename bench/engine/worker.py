"""The worker's end of a job: what every measuring process does around its measuring.

Imports nothing beyond the standard library, since rivals' environments have nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.engine.contenders import Model


def answer(measure: Callable[..., dict[str, Any]]) -> None:
    """Calls `measure` with the task that the first argument names, a JSON file, and prints its result as JSON.

    A package that is not there is a result too: `{"missing": its name}`.
    """
    # Ends by an exception, so that whoever began something ends it: a stack is several processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    task = json.loads(Path(sys.argv[1]).read_text())
    model = Model(**{name: Path(path) for name, path in task.pop("model").items()})
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)  # what libraries print goes where errors go
        try:
            result = measure(model, **task)
        except ModuleNotFoundError as error:
            result = {"missing": error.name}
        json.dump(result, output)
