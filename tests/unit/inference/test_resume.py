"""An answer that goes on from its tokens: to the letter what the unbroken run would have said."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from services.common.errors import InvalidRequest
from services.inference.engine.engine import Engine
from services.inference.engine.generation import Generation, Piece
from services.inference.engine.sequence import Sampling
from tests.unit.inference.answering import bodies, chat, complete, counts, notes, said, texts

StartEngine = Callable[..., Engine]
RULES = {
    "greedy": Sampling(temperature=0),
    "seeded": Sampling(temperature=1.2),
    "filtered": Sampling(temperature=1.0, top_k=40, top_p=0.9, min_p=0.01),
    "penalties": Sampling(temperature=0, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4),
    "all": Sampling(0.8, 60, 0.95, 0.0, 1.2, 0.3, 0.3, ((5, 3.0), (250, -100.0)), 3),
}
CASES, LENGTH = 10, 14


def submit(engine: Engine, prompt: list[int], sampling: Sampling, **more: Any) -> Generation:
    given = {"max_tokens": LENGTH} | more
    return engine.submit(prompt, sampling, deadline=time.monotonic() + 60, **given)


def facts(pieces: list[Piece]) -> tuple[list[int | None], str, str | None]:
    return [piece.token for piece in pieces if piece.token is not None], text(pieces), pieces[-1].finish


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("stopping", [False, True], ids=["to its limit", "to a stop sequence"])
@pytest.mark.parametrize("rule", RULES)
def test_an_answer_goes_on_from_any_of_its_tokens_as_if_unbroken(
    start_engine: StartEngine, rule: str, stopping: bool
) -> None:
    engine = start_engine(kv_blocks=256)
    chance = random.Random(f"{rule} {stopping}")
    for _ in range(CASES):
        prompt = [chance.randrange(256) for _ in range(chance.randint(1, 20))]
        sampling = Sampling(**{**vars(RULES[rule]), "seed": chance.getrandbits(63)})
        free = text(list(submit(engine, prompt, sampling)))
        at = chance.randrange(max(len(free) - 2, 1))
        # The second never comes, but its beginning does, and is held back.
        stops = (free[at : at + 3], free[-3:] + "never") if stopping and free else ()
        unbroken = list(submit(engine, prompt, sampling, stops=stops))
        ids = [piece.token for piece in unbroken if piece.token is not None]
        resumed = [submit(engine, prompt, sampling, stops=stops, resume=ids[:given]) for given in range(len(ids) + 1)]
        for given, generation in enumerate(resumed):
            rest = list(generation)
            assert facts([*unbroken[:given], *rest]) == facts(unbroken), (prompt, stops, given)
            assert generation.sequence.generated == len(ids)
            assert [(piece.token, piece.logprob) for piece in rest if piece.token is not None] == [
                (piece.token, pytest.approx(piece.logprob, abs=1e-3)) for piece in unbroken[given:]
            ]


def test_an_answer_that_ended_with_the_end_token_is_seen_to_be_complete(start_engine: StartEngine) -> None:
    engine = start_engine()
    ids = [piece.token for piece in submit(engine, [3, 14], RULES["greedy"])]
    end = ids[4]
    assert end is not None
    engine.loaded.eos_ids = frozenset({end})
    whole = ids[: ids.index(end) + 1]
    assert list(submit(engine, [3, 14], RULES["greedy"], resume=whole)) == [Piece(None, "", "stop")]


@pytest.mark.parametrize("resume", [[1] * (LENGTH + 1), [1, 100_000], [1, -1]], ids=["too long", "unknown", "negative"])
def test_tokens_that_no_answer_can_begin_with_are_refused(start_engine: StartEngine, resume: list[int]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        submit(start_engine(), [3, 14], RULES["greedy"], resume=resume)
    assert caught.value.param == "resume_token_ids"


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0}, {"seed": 5}, {"seed": 6, "frequency_penalty": 1, "stop": ["a", "é"]}],
    ids=["greedy", "seeded", "penalty and stops"],
)
@pytest.mark.parametrize("ask", [chat, complete])
def test_a_stream_that_broke_after_any_chunk_goes_on_with_the_next(
    client: FlaskClient, ask: Any, fields: dict[str, Any]
) -> None:
    asked = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 30} | fields
    unbroken = ask(client, **asked)
    chunks, seen = bodies(unbroken), notes(unbroken)
    for broken in range(1, len(chunks)):
        given = [token for note in seen[:broken] for token in note["token_ids"]]
        rest = ask(client, **asked, resume_token_ids=given)
        assert texts(chunks[:broken] + bodies(rest)) == texts(chunks)
        assert given + [token for note in notes(rest) for token in note["token_ids"]] == [
            token for note in seen for token in note["token_ids"]
        ]
        last = bodies(rest)[-1]
        assert counts(last["usage"]) == counts(chunks[-1]["usage"])
        finishes = [chunk["choices"][0]["finish_reason"] for chunk in bodies(rest) if chunk["choices"]]
        assert finishes[-1] == chunks[-2]["choices"][0]["finish_reason"]
        assert all(note["completion_tokens"] >= len(given) for note in notes(rest))


def test_the_role_is_not_said_again(client: FlaskClient) -> None:
    given = [token for note in notes(chat(client, seed=1, stream=True)) for token in note["token_ids"]]
    rest = bodies(chat(client, seed=1, stream=True, resume_token_ids=given[:2]))
    assert not any("role" in choice["delta"] for chunk in rest for choice in chunk["choices"])


def test_a_whole_answer_has_only_what_follows_and_counts_everything(client: FlaskClient) -> None:
    streamed = complete(client, seed=1, stream=True, max_tokens=20)
    given = [token for note in notes(streamed) for token in note["token_ids"]]
    whole = complete(client, seed=1, max_tokens=20)
    for broken in range(21):
        rest = complete(client, seed=1, max_tokens=20, resume_token_ids=given[:broken])
        assert said(whole)[0].endswith(said(rest)[0])
        assert counts(rest.json["usage"]) == counts(whole.json["usage"])


def test_offsets_of_log_probabilities_go_on_too(client: FlaskClient) -> None:
    asked = {"seed": 3, "logprobs": 1, "max_tokens": 20}
    whole = complete(client, **asked).json["choices"][0]["logprobs"]
    given = [token for note in notes(complete(client, **asked, stream=True)) for token in note["token_ids"]]
    rest = complete(client, **asked, resume_token_ids=given[:7]).json["choices"][0]["logprobs"]
    assert rest["tokens"] == whole["tokens"][7:]
    assert rest["text_offset"] == whole["text_offset"][7:]


def test_resuming_one_of_several_choices_is_refused(client: FlaskClient) -> None:
    assert chat(client, n=2, resume_token_ids=[1]).status_code == 400
