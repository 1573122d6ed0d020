"""What a request asks of the model: read where the engine has it, refused by name where it has not.

Nothing is silently ignored: a parameter that would change the answer and that the engine does not have is an error.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from services.common.errors import InvalidRequest, UnsupportedParameter
from services.common.wire import CompletionRequest, GenerationRequest

if TYPE_CHECKING:
    from services.inference.engine.load import Loaded
    from services.inference.engine.sequence import Sampling

INERT = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip
"""Fields that say who asks or how to keep the answer, and do not change it."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "echo": (False,),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "verbosity": ("medium",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""Values with which a parameter that is not supported asks for nothing; null is one of them for every parameter."""

OWN_DEFAULTS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Parameters whose default is the model's own."""


def refuse_unsupported(asked: GenerationRequest, body: Mapping[str, Any]) -> None:
    """Refuses what the engine would have to ignore.

    Raises:
        UnsupportedParameter: names the first such field.
    """
    neutral = NEUTRAL | {"best_of": (asked.n or 1,)}  # the best n of n are all of them
    for name, value in body.items():
        known = name in INERT or name in type(asked).model_fields or value is None
        if not known and value not in neutral.get(name, ()):
            raise UnsupportedParameter(f"The parameter '{name}' is not supported by this model server.", param=name)
    if isinstance(asked, CompletionRequest) and asked.echo and asked.logprobs is not None:
        raise UnsupportedParameter("Log probabilities of the prompt, by 'echo', are not supported.", param="echo")


def read_sampling(asked: GenerationRequest, loaded: Loaded) -> Sampling:
    """How the tokens of the request's first choice are drawn; without a seed in the request, by a random one.

    Raises:
        InvalidRequest: the bias or the stops name a token that the model does not have, or the answer's least length is
            above its greatest.
    """
    if asked.min_tokens and asked.token_limit is not None and asked.min_tokens > asked.token_limit:
        raise InvalidRequest(f"min_tokens is greater than max_tokens, {asked.token_limit}.", param="min_tokens")
    bias = tuple((int(token), value) for token, value in (asked.logit_bias or {}).items())
    for param, tokens in (("logit_bias", [token for token, _ in bias]), ("stop_token_ids", asked.stop_token_ids or [])):
        wrong = next((token for token in tokens if token >= loaded.vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(f"{wrong} is not a token id of this model: it has {loaded.vocabulary}.", param=param)
    given = {name: value for name in OWN_DEFAULTS if (value := getattr(asked, name)) is not None}
    return replace(
        loaded.defaults,
        **given,
        top_k=loaded.defaults.top_k if asked.top_k is None else max(asked.top_k, 0),
        logit_bias=bias,
        min_tokens=asked.min_tokens or 0,
        logprobs=asked.logprob_count,
        seed=secrets.randbits(63) if asked.seed is None else asked.seed,
    )


def read_number(name: str, given: str | None, default: float, *, least: float, most: float) -> float:
    """The value of a header or parameter that is a number; the default where it was not given.

    Raises:
        InvalidRequest: it is none, or out of its range.
    """
    if given is None:
        return default
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise InvalidRequest(f"{name} must be a number from {least:g} to {most:g}.")
    return value
