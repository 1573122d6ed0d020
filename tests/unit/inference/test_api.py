"""The routes, over a tiny real model, without a server: what is refused, what is answered, what is logged."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.unit.inference.answering import HI, MODEL, bodies, chat, complete, counts, events, notes, said, texts


def test_a_chat_is_answered(client: FlaskClient) -> None:
    body = chat(client).json
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 6


def test_a_completion_is_answered(client: FlaskClient) -> None:
    body = complete(client, prompt=[5, 6, 7]).json
    assert body["object"] == "text_completion"
    assert counts(body["usage"]) == (3, 6, 9)


def test_max_completion_tokens_is_understood(client: FlaskClient) -> None:
    assert chat(client, max_tokens=None, max_completion_tokens=3).json["usage"]["completion_tokens"] == 3


def test_without_a_limit_the_answer_may_fill_the_context(client: FlaskClient) -> None:
    usage = complete(client, max_tokens=None, prompt=[1] * 500, temperature=0).json["usage"]
    assert usage["total_tokens"] <= 512


def test_a_limit_beyond_the_context_is_cut(client: FlaskClient) -> None:
    assert complete(client, max_tokens=100_000, prompt=[1] * 505, temperature=0).json["usage"]["total_tokens"] <= 512


def test_a_stream_has_role_deltas_finish_usage_and_end(client: FlaskClient) -> None:
    response = chat(client, stream=True, stream_options={"include_usage": True}, seed=1)
    assert response.content_type == "text/event-stream; charset=utf-8"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert events(response)[-1].done
    chunks = bodies(response)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6


def test_a_stream_says_the_same_as_the_whole_answer(client: FlaskClient) -> None:
    assert texts(bodies(chat(client, seed=7, stream=True))) == {0: said(chat(client, seed=7))[0]}


def test_notes_count_the_tokens_and_carry_each_id_once(client: FlaskClient) -> None:
    found = notes(chat(client, seed=7, stream=True))
    ids = [token for note in found for token in note["token_ids"]]
    running = [note["completion_tokens"] for note in found]
    assert len(ids) == running[-1] == 6
    assert running == sorted(running)
    assert found[0]["prompt_tokens"] == chat(client).json["usage"]["prompt_tokens"]


def test_a_completion_stream_ends_without_usage_where_none_was_asked(client: FlaskClient) -> None:
    chunks = bodies(complete(client, stream=True))
    assert all(chunk["object"] == "text_completion" and "usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    "field",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"best_of": 2},
        {"reasoning_effort": "high"},
        {"no_such_parameter": 1},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_parameter_that_is_not_supported_is_refused_by_name(client: FlaskClient, field: dict[str, Any]) -> None:
    response = chat(client, **field)
    assert response.status_code == 400
    assert response.json["error"]["code"] == "unsupported_parameter"
    assert response.json["error"]["param"] == next(iter(field))


@pytest.mark.parametrize("field", [{"suffix": "x"}, {"echo": True, "logprobs": 1}, {"best_of": 2}])
def test_a_completion_parameter_that_is_not_supported_is_refused_by_name(
    client: FlaskClient, field: dict[str, Any]
) -> None:
    assert complete(client, **field).json["error"]["param"] == next(iter(field))


def test_what_asks_for_nothing_is_accepted(client: FlaskClient) -> None:
    neutral = {
        "n": 1,
        "best_of": 1,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logprobs": False,
        "logit_bias": {},
        "presence_penalty": 0.0,
        "user": "someone",
        "cache_salt": "salt",
        "metadata": {"a": "b"},
        "reasoning_effort": None,
        "verbosity": "medium",
        "min_tokens": 0,
        "stop_token_ids": [],
        "skip_special_tokens": True,
        "include_stop_str_in_output": False,
        "add_generation_prompt": True,
        "chat_template_kwargs": {},
        "use_beam_search": False,
        "length_penalty": 1.0,
        "echo": False,
    }
    assert chat(client, **neutral).status_code == 200


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ],
)
def test_a_wrong_value_is_refused_by_name(client: FlaskClient, field: dict[str, Any], param: str) -> None:
    response = chat(client, **field)
    assert response.status_code == 400
    assert response.json["error"]["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe\0", b'{"model": NaN}'])
def test_what_is_not_a_json_object_is_refused(client: FlaskClient, body: bytes) -> None:
    response = client.post("/v1/chat/completions", data=body)
    assert (response.status_code, response.json["error"]["code"]) == (400, "malformed_json")


def test_text_that_is_not_unicode_is_refused(client: FlaskClient) -> None:
    assert client.post("/v1/completions", data=b'{"model": "tiny-llama", "prompt": "\\ud800"}').status_code == 400


def test_a_prompt_too_long_names_both_numbers(client: FlaskClient) -> None:
    error = complete(client, prompt=[1] * 512).json["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert error["message"].count("512") == 2
    assert error["message"].startswith("This model's maximum context length is 512 tokens")
    assert chat(client, messages=[{"role": "user", "content": "x" * 600}]).json["error"]["param"] == "messages"


def test_an_unknown_model_is_not_found(client: FlaskClient) -> None:
    response = chat(client, model="none-such")
    assert (response.status_code, response.json["error"]["code"]) == (404, "model_not_found")


def test_time_that_is_over_is_answered_504(client: FlaskClient) -> None:
    for stream in (False, True):
        response = client.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": HI, "stream": stream},
            headers={"X-Forebay-Timeout": "0"},
        )
        assert (response.status_code, response.json["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf", ""])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(client: FlaskClient, given: str) -> None:
    response = client.post(
        "/v1/completions", json={"model": MODEL, "prompt": "x"}, headers={"X-Forebay-Timeout": given}
    )
    assert response.status_code == 400


def test_models_are_listed_and_shown(client: FlaskClient) -> None:
    listed = client.get("/v1/models").json["data"]
    assert [model["id"] for model in listed] == [MODEL]
    assert listed[0]["object"] == "model"
    assert client.get(f"/v1/models/{MODEL}").json["id"] == MODEL
    assert listed[0]["max_model_len"] == listed[0]["context_length"] == 512
    assert client.get("/v1/models/none-such").status_code == 404


def test_the_log_line_has_counts_and_no_text(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    secret = "a very private sentence"
    with caplog.at_level(logging.DEBUG):
        chat(client, messages=[{"role": "user", "content": secret}]).close()
        stream = chat(client, messages=[{"role": "user", "content": secret}], stream=True)
        assert events(stream)[-1].done
        stream.close()
        chat(client, messages=[{"role": "user", "content": secret}], functions=[{"name": "f"}]).close()
    lines = [vars(record) for record in caplog.records if record.name == "forebay.access"]
    for line in lines[:2]:
        assert (line["model"], line["completion_tokens"], line["outcome"]) == (MODEL, 6, "length")
        assert line["prompt_tokens"] > len(secret)
        assert line["ttft"] > 0
    assert lines[2]["error"] == "unsupported_parameter"
    assert secret not in str([vars(record) for record in caplog.records])


def test_a_stream_that_is_dropped_frees_its_slot(client: FlaskClient) -> None:
    with client.application.extensions["forebay.models"].use(MODEL, float("inf")) as engine:
        response = chat(client, stream=True, max_tokens=400)
        response.close()
        # A request that ends after it, ends after the other's last step.
        assert complete(client).status_code == 200
        assert not engine._active
