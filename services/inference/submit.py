"""Handing a request to the engine: one generation for each of its choices."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.common.wire import ChatRequest, GenerationRequest
from services.inference.parameters import read_sampling

if TYPE_CHECKING:
    from services.inference.engine.engine import Engine
    from services.inference.engine.generation import Generation


@dataclass(frozen=True)
class Terms:
    """What the server, not the body, says of a request.

    deadline: on the monotonic clock. weight: the tenant's share against others. adapter: the LoRA adapter to compute
    with. capacity: the most generations that the engine takes in at all.
    """

    deadline: float
    weight: float
    adapter: str | None
    capacity: int


@contextmanager
def submitted(
    engine: Engine, asked: GenerationRequest, prompts: Listing[list[int]], terms: Terms
) -> Iterator[list[Generation]]:
    """The generations of a request, to be read together: the choices of the first prompt, then those of the next.

    They end with the block, wherever they stand. Choice i of a prompt is drawn by the request's seed plus i, as vLLM
    does it, so that the first is the answer of a request for one.

    Raises:
        ContextLengthExceeded: a prompt is as long as the model's context, or longer.
        InvalidRequest: more choices than the server takes at once, or a parameter that does not fit the model.
        QueueFull: they do not all fit in now.
    """
    if asked.choices > terms.capacity:
        raise InvalidRequest(
            f"The request asks for {asked.choices} choices, but this server takes {terms.capacity} at most.", param="n"
        )
    for prompt in prompts:
        _check_length(prompt, engine.loaded.context_length, "messages" if isinstance(asked, ChatRequest) else "prompt")
    sampling = read_sampling(asked, engine.loaded)
    generations: list[Generation] = []
    try:
        for prompt in prompts:
            for number in range(asked.n or 1):
                generation = engine.submit(
                    prompt,
                    replace(sampling, seed=sampling.seed + number),
                    max_tokens=asked.token_limit or engine.loaded.context_length,
                    stops=asked.stops,
                    ignore_eos=bool(asked.ignore_eos),
                    stop_ids=asked.stop_token_ids or (),
                    deadline=terms.deadline,
                    salt=asked.cache_salt or "",
                    adapter=terms.adapter,
                    weight=terms.weight,
                    priority=asked.priority or 0,
                    resume=asked.resume_token_ids or (),
                    beside=generations[0] if generations else None,
                )
                generations.append(generation)
        yield generations
    finally:
        cancel(generations)


def cancel(generations: Listing[Generation]) -> None:
    """Ends all that still run."""
    for generation in generations:
        generation.cancel()


def _check_length(prompt: list[int], context: int, param: str) -> None:
    if len(prompt) >= context:
        raise ContextLengthExceeded(
            # OpenAI's words, by which LiteLLM and others know that a model with a longer context is wanted.
            f"This model's maximum context length is {context} tokens, prompt and answer together. However, the prompt "
            f"has {len(prompt)} tokens.",
            param=param,
        )
