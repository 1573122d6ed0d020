"""What a request gets that asks for more than one plain text: several choices, log probabilities, counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
from flask.testing import FlaskClient

from services.common import sse
from services.inference.engine.engine import Engine
from tests.unit.inference.answering import MODEL, bodies, chat, complete, counts, events, notes, said, texts

PROMPTS = ["Hi", "Bye now", [72, 105]]


def engine_of(client: FlaskClient) -> Engine:
    with client.application.extensions["forebay.models"].use(MODEL, float("inf")) as engine:
        return engine


@pytest.mark.parametrize("ask", [chat, complete])
def test_the_first_of_several_choices_is_the_answer_of_a_request_for_one(client: FlaskClient, ask: Any) -> None:
    one, three = ask(client, seed=4), ask(client, seed=4, n=3)
    assert [choice["index"] for choice in three.json["choices"]] == [0, 1, 2]
    assert said(three)[0] == said(one)[0]
    assert len(set(said(three))) == 3


def test_choice_i_is_drawn_by_the_seed_plus_i(client: FlaskClient) -> None:
    assert said(chat(client, seed=4, n=3)) == [said(chat(client, seed=seed))[0] for seed in (4, 5, 6)]


def test_greedy_choices_are_alike(client: FlaskClient) -> None:
    assert len(set(said(chat(client, temperature=0, n=3)))) == 1


def test_several_prompts_are_answered_each_as_if_alone(client: FlaskClient) -> None:
    alone = [said(complete(client, prompt=prompt, seed=4, n=2)) for prompt in PROMPTS[:2]]
    together = complete(client, prompt=PROMPTS[:2], seed=4, n=2)
    assert said(together) == [*alone[0], *alone[1]]
    assert [choice["index"] for choice in together.json["choices"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 2])
def test_each_note_says_what_the_request_has_cost_so_far(client: FlaskClient, n: int) -> None:
    """By which a gateway knows it of a pod that is killed."""
    response = chat(client, n=n, stream=True, stream_options={"include_usage": True})
    seconds = [note["compute_seconds"] for note in notes(response)]
    assert seconds == sorted(seconds)
    usage = bodies(response)[-1]["usage"]["forebay"]
    assert 0 < seconds[-2] <= usage["compute_seconds"] + 0.0001


def test_several_prompts_may_be_token_ids(client: FlaskClient) -> None:
    alone = said(complete(client, prompt=PROMPTS[2], seed=4))
    assert said(complete(client, prompt=[PROMPTS[2], PROMPTS[2]], seed=4)) == alone * 2


@pytest.mark.parametrize(
    ("ask", "fields"), [(chat, {"n": 3}), (complete, {"n": 3}), (complete, {"n": 2, "prompt": PROMPTS[:2]})]
)
def test_several_choices_are_streamed_as_they_come(client: FlaskClient, ask: Any, fields: dict[str, Any]) -> None:
    asked = {"seed": 4, "max_tokens": 20} | fields
    whole = ask(client, **asked)
    response = ask(client, **asked, stream=True, stream_options={"include_usage": True})
    chunks, seen = bodies(response), notes(response)
    assert texts(chunks) == dict(enumerate(said(whole)))
    finishes = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(choice["index"] for choice in finishes) == list(range(len(said(whole))))
    assert counts(chunks[-1]["usage"]) == counts(whole.json["usage"])
    assert seen[-1]["completion_tokens"] == whole.json["usage"]["completion_tokens"]
    for index in range(len(said(whole))):
        assert sum(len(note["token_ids"]) for note in seen if note["index"] == index) == 20
    order = [choice["index"] for chunk in chunks for choice in chunk["choices"]]
    assert order != sorted(order), "nobody waits for the end of another"


def test_usage_counts_a_prompt_once_and_all_that_was_generated(client: FlaskClient) -> None:
    one, three = chat(client, seed=4).json["usage"], chat(client, seed=4, n=3).json["usage"]
    assert three["prompt_tokens"] == one["prompt_tokens"]
    assert three["completion_tokens"] == 18
    both = complete(client, prompt=PROMPTS[:2], n=2).json["usage"]
    assert counts(both) == (2 + 7, 24, 33)


def test_usage_tells_what_the_prefix_cache_spared_and_what_was_computed(client: FlaskClient) -> None:
    prompt = [7, 11, 13] * 40
    first = complete(client, prompt=prompt, cache_salt="a").json["usage"]
    again = complete(client, prompt=prompt, cache_salt="a").json["usage"]
    other = complete(client, prompt=prompt, cache_salt="b").json["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] == other["prompt_tokens_details"]["cached_tokens"] == 0
    assert 0 < again["prompt_tokens_details"]["cached_tokens"] < len(prompt)
    assert again["forebay"]["compute_seconds"] > 0


def test_more_choices_than_the_server_takes_are_refused_for_good(client: FlaskClient) -> None:
    response = complete(client, prompt=["x"] * 200, n=2)
    assert (response.status_code, response.json["error"]["param"]) == (400, "n")


def test_choices_that_do_not_all_fit_in_now_leave_none_behind(client: FlaskClient) -> None:
    engine = engine_of(client)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_capacity", 2)
        response = chat(client, n=3, max_tokens=400)
        assert (response.status_code, response.json["error"]["code"]) == (429, "queue_full")
    # A request that ends after them, ends after their last step.
    assert complete(client).status_code == 200
    assert not engine._active


def test_a_stream_of_several_choices_that_is_dropped_frees_all_its_places(client: FlaskClient) -> None:
    engine = engine_of(client)
    chat(client, n=4, stream=True, max_tokens=400).close()
    assert complete(client).status_code == 200
    assert not engine._active


def test_best_of_is_understood_where_it_asks_for_all_of_them(client: FlaskClient) -> None:
    assert len(complete(client, n=2, best_of=2).json["choices"]) == 2
    assert complete(client, n=2, best_of=3).json["error"]["param"] == "best_of"


@pytest.mark.parametrize(("prompt", "shown"), [("Hi 海", "Hi 海"), ([72, 105], None)])
def test_a_prompt_is_repeated_where_that_is_wanted(client: FlaskClient, prompt: Any, shown: str | None) -> None:
    shown = shown or engine_of(client).loaded.tokenizer.decode(prompt)
    answer = said(complete(client, prompt=prompt, seed=4))[0]
    echoed = complete(client, prompt=prompt, seed=4, echo=True)
    assert said(echoed)[0] == f"{shown}{answer}"
    assert texts(bodies(complete(client, prompt=prompt, seed=4, echo=True, stream=True))) == {0: said(echoed)[0]}


def test_a_chat_tells_log_probabilities_of_every_token(client: FlaskClient) -> None:
    choice = chat(client, temperature=0, logprobs=True, top_logprobs=2).json["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 6
    shown = bytes(byte for entry in content for byte in entry["bytes"]).decode(errors="replace")
    assert shown.startswith(choice["message"]["content"].rstrip("\ufffd"))
    for entry in content:
        first, second = entry["top_logprobs"]
        assert {"token": entry["token"], "logprob": entry["logprob"], "bytes": entry["bytes"]} == first
        assert second["logprob"] <= first["logprob"] <= 0


def test_a_chat_without_likeliest_tokens_has_an_empty_list_of_them(client: FlaskClient) -> None:
    content = chat(client, logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in content] == [[]] * 6


def test_a_completion_tells_log_probabilities_by_lists(client: FlaskClient) -> None:
    found = complete(client, seed=3, logprobs=2).json["choices"][0]["logprobs"]
    assert {len(found[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {6}
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
    assert found["text_offset"] == sorted(found["text_offset"])


def test_an_answer_without_log_probabilities_says_null(client: FlaskClient) -> None:
    assert chat(client).json["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("ask", [chat, complete])
def test_a_stream_tells_the_same_log_probabilities_as_a_whole_answer(client: FlaskClient, ask: Any) -> None:
    asked: dict[str, Any] = {"seed": 3, "n": 2, "max_tokens": 20, "logprobs": True if ask is chat else 1}
    whole = ask(client, **asked)
    chunks = [choice for chunk in bodies(ask(client, **asked, stream=True)) for choice in chunk["choices"]]
    for choice in whole.json["choices"]:
        found = [one["logprobs"] for one in chunks if one["index"] == choice["index"] and one["logprobs"]]
        for name, value in choice["logprobs"].items():
            if value is not None:
                assert list(chain.from_iterable(one[name] for one in found)) == value


@pytest.mark.parametrize(
    "field",
    [
        {"logit_bias": {"65": 100}},
        {"repetition_penalty": 3.0},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"temperature": 1.5, "seed": 1},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_parameter_changes_the_answer(client: FlaskClient, field: dict[str, Any]) -> None:
    plain = {"temperature": 0, "max_tokens": 100}
    assert said(chat(client, **plain | field)) != said(chat(client, **plain))


@pytest.mark.parametrize("field", [{"min_p": 1.0}, {"top_k": 1}, {"top_p": 0.001}], ids=lambda field: next(iter(field)))
def test_a_filter_that_leaves_one_token_makes_the_answer_greedy(client: FlaskClient, field: dict[str, Any]) -> None:
    assert said(chat(client, seed=1, **field)) == said(chat(client, temperature=0))


def test_a_bias_for_a_token_that_the_model_has_not_is_refused(client: FlaskClient) -> None:
    error = chat(client, logit_bias={"99999": 1}).json["error"]
    assert error["param"] == "logit_bias"
    assert "99999" in error["message"]


def test_the_end_token_is_ignored_where_that_is_wanted(client: FlaskClient) -> None:
    engine = engine_of(client)
    ids = [token for note in notes(chat(client, temperature=0, stream=True)) for token in note["token_ids"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.loaded, "eos_ids", frozenset({ids[2]}))
        ended, ignored = chat(client, temperature=0), chat(client, temperature=0, ignore_eos=True)
    assert ended.json["usage"]["completion_tokens"] == ids.index(ids[2]) + 1
    assert ignored.json["usage"]["completion_tokens"] == 6


def test_an_answer_has_no_end_before_its_least_length(client: FlaskClient) -> None:
    ids = [token for note in notes(chat(client, temperature=0, stream=True)) for token in note["token_ids"]]
    cut = chat(client, temperature=0, stop_token_ids=[ids[2]]).json
    assert (cut["usage"]["completion_tokens"], cut["choices"][0]["finish_reason"]) == (ids.index(ids[2]) + 1, "stop")
    assert chat(client, temperature=0, stop_token_ids=[ids[2]], min_tokens=6).json["usage"]["completion_tokens"] == 6


def test_stop_tokens_are_not_part_of_the_text_and_end_an_answer_that_ignores_the_end_token(client: FlaskClient) -> None:
    ids = [token for note in notes(chat(client, temperature=0, stream=True)) for token in note["token_ids"]]
    whole, cut = chat(client, temperature=0), chat(client, temperature=0, stop_token_ids=[ids[2]], ignore_eos=True)
    assert said(whole)[0].startswith(said(cut)[0])
    assert said(whole) != said(cut)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
        ({"min_tokens": 7}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
    ],
)
def test_wrong_ends_are_refused_by_name(client: FlaskClient, more: dict[str, Any], param: str) -> None:
    assert chat(client, **more).json["error"]["param"] == param


def test_salt_weight_and_priority_reach_the_engine(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, given = engine_of(client), {}
    submit = engine.submit

    def note(*args: Any, **more: Any) -> Any:
        given.update(more)
        return submit(*args, **more)

    monkeypatch.setattr(engine, "submit", note)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1, "cache_salt": "s", "priority": 7}
    assert client.post("/v1/completions", json=body, headers={"X-Forebay-Weight": "2.5"}).status_code == 200
    assert (given["salt"], given["weight"], given["priority"], given["adapter"]) == ("s", 2.5, 7, None)
    assert complete(client).status_code == 200
    assert (given["salt"], given["weight"], given["priority"]) == ("", 1.0, 0)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much", ""])
def test_a_weight_that_is_no_positive_number_is_refused(client: FlaskClient, weight: str) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    response = client.post("/v1/completions", json=body, headers={"X-Forebay-Weight": weight})
    assert response.status_code == 400
    assert "X-Forebay-Weight" in response.json["error"]["message"]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_that_is_cut_short_says_first_how_much_was_generated(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, n: int
) -> None:
    engine = engine_of(client)
    forward: Callable[..., Any] = engine.loaded.runner.forward
    steps = 0

    def fail(plan: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 5:
            raise RuntimeError("on purpose")
        return forward(plan)

    monkeypatch.setattr(engine.loaded.runner, "forward", fail)
    with caplog.at_level("INFO"):
        response = chat(client, stream=True, n=n, max_tokens=50, seed=2)
        *_, last = events(response)
        response.close()
    (line,) = [vars(record) for record in caplog.records if record.name == "forebay.access"]
    assert json.loads(last.data or b"")["error"]["code"] == "internal_error"
    assert last.note is not None
    assert last.note["completion_tokens"] == line["completion_tokens"] >= 5
    assert last.note["prompt_tokens"] == line["prompt_tokens"] > 0
    ids = [token for note in notes(response) if note.get("index", 0) == 0 for token in note["token_ids"]]
    assert len(ids) == 5, "the first choice takes part in every step"
    assert sse.DONE not in response.data


def test_the_log_line_of_several_choices_counts_them_all(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        chat(client, n=3).close()
    (line,) = [vars(record) for record in caplog.records if record.name == "forebay.access"]
    assert (line["completion_tokens"], line["outcome"]) == (18, "length")
