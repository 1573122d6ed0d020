"""Our engine alone, loaded as a pod loads it and called without HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.engine.contenders import Answer, Generate, Model, Prompt

if TYPE_CHECKING:
    from services.inference.engine.generation import Generation

SETTINGS: dict[str, dict[str, Any]] = {"as in a pod": {}}
PATIENCE = 600.0


@contextmanager
def start(model: Model, **options: Any) -> Iterator[Generate]:
    """
    Args:
        options: settings of the pod, such as quantization.
    """
    # First, as in a pod: it says how torch's threads wait, which torch reads when it comes.
    import services.inference.gunicorn_conf  # noqa: F401, PLC0415
    from services.common.metrics import EngineMetrics  # noqa: PLC0415
    from services.common.settings import InferenceSettings  # noqa: PLC0415
    from services.inference.engine.sequence import Sampling  # noqa: PLC0415
    from services.inference.models import Models  # noqa: PLC0415

    if unknown := options.keys() - InferenceSettings.model_fields.keys():
        raise ValueError(f"no such settings: {', '.join(sorted(unknown))}")  # they would be ignored
    models = Models({"model": str(model.folder)}, InferenceSettings(**options), EngineMetrics())
    greedy = Sampling(temperature=0)

    def generate(prompts: list[Prompt], tokens: int) -> list[Answer]:
        begin = time.monotonic()
        submitted = [
            engine.submit(prompt.ids, greedy, max_tokens=tokens, ignore_eos=True, deadline=begin + PATIENCE)
            for prompt in prompts
        ]
        answers: dict[int, Answer] = {}

        def consume(number: int, generation: Generation) -> None:
            times = [time.monotonic() - begin for _ in generation]
            answers[number] = Answer(len(times), times[0])

        consumers = [threading.Thread(target=consume, args=each) for each in enumerate(submitted)]
        for consumer in consumers:
            consumer.start()
        for consumer in consumers:
            consumer.join()
        return [answers[number] for number in range(len(prompts))]

    try:
        with models.use("model", time.monotonic() + PATIENCE) as engine:
            yield generate
    finally:
        models.close()
