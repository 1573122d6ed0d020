"""The same engine behind gateway and HTTP: the whole stack of `forebay up`, with a streaming client for each prompt."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from bench.engine.contenders import Answer, Generate, Model, Prompt

SETTINGS: dict[str, dict[str, Any]] = {"as `forebay up` starts it": {}}
CLIENTS = 16


@contextmanager
def start(model: Model, **options: Any) -> Iterator[Generate]:
    """
    Args:
        options: settings of the stack, such as quantization.
    """
    from bench.serve import MODEL, stack  # noqa: PLC0415
    from forebay.bench import Target, ask  # noqa: PLC0415

    environment = {f"FOREBAY_{name.upper()}": str(value).lower() for name, value in options.items()}
    home = model.folder.parents[1]
    with stack(home, environment) as (url, key), ThreadPoolExecutor(CLIENTS) as clients:

        def generate(prompts: list[Prompt], tokens: int) -> list[Answer]:
            target = Target(url, key, MODEL, tokens)

            def chat(prompt: Prompt) -> Answer:
                sample = ask(target, prompt.text, temperature=0, ignore_eos=True)
                return Answer(sample.tokens, sample.ttft)

            return list(clients.map(chat, prompts))

        yield generate
