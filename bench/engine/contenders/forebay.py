"""Our engine alone, loaded as a pod loads it and called without HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.engine.contenders import Answer, Generate, Model, Prompt

if TYPE_CHECKING:
    from services.common.settings import InferenceSettings
    from services.inference.engine.engine import Engine
    from services.inference.engine.generation import Generation

SETTINGS: dict[str, dict[str, Any]] = {"as in a pod": {}}
PATIENCE = 600.0


def pod_settings(**options: Any) -> InferenceSettings:
    """Makes this process what a pod's is, and returns its settings. Must be called before torch is imported.

    Raises:
        ValueError: there is no such setting; it would be ignored, and something else measured.
    """
    import services.inference.gunicorn_conf  # noqa: F401, PLC0415 - says how torch's threads wait
    from services.common.settings import InferenceSettings  # noqa: PLC0415

    if unknown := options.keys() - InferenceSettings.model_fields.keys():
        raise ValueError(f"no such settings: {', '.join(sorted(unknown))}")
    return InferenceSettings(**options)


@contextmanager
def started(model: Model, **options: Any) -> Iterator[Engine]:
    """The engine of a pod with these settings."""
    settings = pod_settings(**options)
    from services.common.metrics import EngineMetrics  # noqa: PLC0415
    from services.inference.models import Models  # noqa: PLC0415

    models = Models({"model": str(model.folder)}, settings, EngineMetrics())
    try:
        with models.use("model", time.monotonic() + PATIENCE) as engine:
            yield engine
    finally:
        models.close()


@contextmanager
def start(model: Model, **options: Any) -> Iterator[Generate]:
    """
    Args:
        options: settings of the pod, such as quantization.
    """
    with started(model, **options) as engine:
        from services.inference.engine.sequence import Sampling  # noqa: PLC0415

        greedy = Sampling(temperature=0)

        def generate(prompts: list[Prompt], tokens: int) -> list[Answer]:
            begin = time.monotonic()
            submitted = [
                engine.submit(prompt.ids, greedy, max_tokens=tokens, ignore_eos=True, deadline=begin + PATIENCE)
                for prompt in prompts
            ]

            def consume(generation: Generation) -> Answer:
                times = [time.monotonic() - begin for _ in generation]
                return Answer(len(times), times[0])

            with ThreadPoolExecutor(len(prompts)) as consumers:
                return list(consumers.map(consume, submitted))

        yield generate
