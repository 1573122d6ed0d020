"""One rank of a pod: `torchrun --standalone --nproc-per-node=N -m services.inference` splits a pod's model over N.

Rank 0 becomes gunicorn, as in a pod of one process; the others compute with it. When one of them dies, its neighbours
notice that its connection broke and end too, and torchrun ends with an error, so that the whole pod is started anew.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

from services.common.settings import InferenceSettings
from services.common.telemetry import configure_logging
from services.inference.catalogue import parse_catalogue
from services.inference.engine.errors import SourceError
from services.inference.engine.ranks import rank

log = logging.getLogger("forebay.parallel")


def main() -> int:
    """The process of this rank. Returns the exit code of one that follows."""
    # Before torch is loaded. The ranks of a pod are on one host, so nobody else needs to reach them.
    defaults = {"GOMP_SPINCOUNT": "2000", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    os.environ |= defaults | os.environ
    if rank() == 0:
        gunicorn = [sys.executable, "-m", "gunicorn", "-c", "python:services.inference.gunicorn_conf"]
        os.execv(gunicorn[0], gunicorn)  # noqa: S606 - nothing of it is from outside
    settings = InferenceSettings()
    configure_logging("inference", settings.model_copy(update={"log_file": None}))  # one process may rotate it
    return _follow(settings)


def _follow(settings: InferenceSettings) -> int:
    from services.inference.engine.load import load  # noqa: PLC0415 - torch
    from services.inference.engine.parallel import follow  # noqa: PLC0415

    ending = False

    def end(_number: int, _frame: Any) -> None:
        # Not yet: rank 0 still answers what it has begun, and cannot alone.
        nonlocal ending
        ending = True

    try:
        loaded = load(next(iter(parse_catalogue(settings.model).values())), settings)
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        follow(loaded.runner)
    except SourceError as error:
        log.error("model not loaded", extra={"rank": rank(), "reason": str(error)})
    except Exception as error:
        if ending:
            return 0
        log.critical("a rank is lost or out of step, so the pod ends", exc_info=True, extra={"reason": str(error)})
    return 1


if __name__ == "__main__":
    sys.exit(main())
