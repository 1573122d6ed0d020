"""Answers that another pod has begun: resumed at any token, they go on as they would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import InvalidRequest
from services.inference.engine.engine import Engine
from services.inference.engine.generation import Piece
from services.inference.engine.sequence import Sampling
from tests.unit.inference.asking import GREEDY, PROMPT, StartEngine, held, resumed, submit, tokens, unbroken

RULES = {
    "greedy": GREEDY,
    "drawn": Sampling(temperature=1.0, top_p=0.95, top_k=50, min_p=0.01, seed=7),
    "penalized": Sampling(
        temperature=0.8, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.7, logit_bias=((65, 3.0),)
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_resumed_at_any_token_goes_on_as_it_would_have(start_engine: StartEngine, rule: str) -> None:
    engine = start_engine()
    more = {"sampling": RULES[rule], "max_tokens": 24}
    whole = unbroken(engine, **more)
    for cut in range(len(whole)):
        assert resumed(engine, whole[:cut], **more) == whole[cut:]


def test_an_answer_resumed_beside_others_goes_on_as_it_would_have(start_engine: StartEngine) -> None:
    engine = start_engine(step_tokens=5, max_batch=4)
    more = {"sampling": RULES["drawn"], "max_tokens": 24}
    whole = unbroken(engine, **more)
    broken = [submit(engine, resume=[piece.token for piece in whole[:cut]], **more) for cut in range(0, 24, 2)]
    for cut, one in zip(range(0, 24, 2), broken, strict=True):
        assert list(one) == whole[cut:]


def test_text_held_back_at_the_break_comes_after_it(start_engine: StartEngine) -> None:
    engine = start_engine()
    text = "".join(piece.text for piece in unbroken(engine, max_tokens=24))
    # All of the text might be the beginning of this.
    more = {"max_tokens": 24, "stops": [text + "…"]}
    whole = unbroken(engine, **more)
    assert [piece.text for piece in whole] == [""] * 23 + [text]
    for cut in range(len(whole)):
        assert resumed(engine, whole[:cut], **more) == whole[cut:]


def stops_inside(engine: Engine) -> dict[str, Any]:
    text = "".join(piece.text for piece in unbroken(engine, max_tokens=24))
    return {"max_tokens": 24, "stops": [text[len(text) // 2 :][:2]]}


def ends_itself(engine: Engine) -> dict[str, Any]:
    engine.loaded.eos_ids = frozenset({tokens(submit(engine))[3]})  # type: ignore[arg-type]
    return {"max_tokens": 24}


def reaches_its_limit(_engine: Engine) -> dict[str, Any]:
    return {"max_tokens": 6}


ENDS = pytest.mark.parametrize("ends", [stops_inside, ends_itself, reaches_its_limit])


@ENDS
def test_an_answer_resumed_after_its_last_token_ends_at_once_for_the_same_reason(
    start_engine: StartEngine, registry: CollectorRegistry, ends: Callable[[Engine], dict[str, Any]]
) -> None:
    engine = start_engine()
    more = ends(engine)
    whole = unbroken(engine, **more)
    assert len(whole) < 24
    for cut in range(len(whole)):
        assert resumed(engine, whole[:cut], **more) == whole[cut:]
    labels = {"model": engine.name, "outcome": str(whole[-1].finish)}
    before = registry.get_sample_value("forebay_engine_requests_total", labels) or 0
    with held(engine):  # no step is needed
        assert resumed(engine, whole, **more) == [Piece(None, "", whole[-1].finish)]
    assert registry.get_sample_value("forebay_engine_requests_total", labels) == before + 1


@ENDS
def test_tokens_that_no_answer_begins_with_are_refused(
    start_engine: StartEngine, ends: Callable[[Engine], dict[str, Any]]
) -> None:
    engine = start_engine()
    more = ends(engine)
    whole = tokens(submit(engine, **more))
    for wrong in ([*whole, 1], [-1], [engine.loaded.vocabulary]):
        with pytest.raises(InvalidRequest) as caught:
            submit(engine, resume=wrong, **more)
        assert caught.value.param == "resume_token_ids"


def test_resumed_tokens_count_as_generated(start_engine: StartEngine, registry: CollectorRegistry) -> None:
    engine = start_engine()
    generation = submit(engine, resume=[65, 66, 67], max_tokens=8)
    assert len(tokens(generation)) == 5
    assert (generation.sequence.prompt_length, generation.sequence.generated) == (len(PROMPT), 8)
    assert registry.get_sample_value("forebay_engine_generated_tokens_total", {"model": engine.name}) == 5


def test_the_end_token_may_be_ignored(start_engine: StartEngine) -> None:
    engine = start_engine()
    more = ends_itself(engine)
    assert len(tokens(submit(engine, **more))) < 24
    whole = unbroken(engine, ignore_eos=True, **more)
    assert (len(whole), whole[-1].finish) == (24, "length")
    assert resumed(engine, whole[:12], ignore_eos=True, **more) == whole[12:]
