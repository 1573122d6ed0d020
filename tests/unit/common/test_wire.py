"""The wire format: what is accepted, what is refused and with which words, what answers look like."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import wire
from services.common.errors import InvalidRequest, MalformedJson

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": "m", "prompt": "hello"}


def chat(**fields: Any) -> wire.ChatRequest:
    return wire.validate(wire.ChatRequest, {**CHAT, **fields})


def refused(kind: type[wire.GenerationRequest], body: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        wire.validate(kind, body)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logit_bias": [1, 2]}, "logit_bias"),
        ({"logit_bias": {"5": "much"}}, "logit_bias.5"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0665": 1}}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"seed": 2**63}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"cache_salt": 7}, "cache_salt"),
        ({"resume_token_ids": [1, -1]}, "resume_token_ids.1"),
        ({"resume_token_ids": [True]}, "resume_token_ids.0"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop": ["x", "x" * 1025]}, "stop"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_completion_tokens": 2**31}, "max_completion_tokens"),
        ({"top_k": 2**31}, "top_k"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages.0.content"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
    ],
)
def test_a_wrong_field_is_named_in_the_refusal(fields: dict[str, Any], param: str) -> None:
    error = refused(wire.ChatRequest, {**CHAT, **fields})
    assert (error.status, error.param) == (400, param)
    assert f"'{param}'" in error.message


@pytest.mark.parametrize(("value", "param"), [(6, "logprobs"), (-1, "logprobs"), (True, "logprobs")])
def test_a_completion_counts_its_log_probabilities(value: Any, param: str) -> None:
    assert refused(wire.CompletionRequest, {**TEXT, "logprobs": value}).param == param


def test_likeliest_tokens_without_log_probabilities_are_refused_as_openai_does() -> None:
    assert refused(wire.ChatRequest, {**CHAT, "top_logprobs": 2}).param == "top_logprobs"
    assert refused(wire.ChatRequest, {**CHAT, "top_logprobs": 2, "logprobs": False}).param == "top_logprobs"
    assert chat(top_logprobs=0).logprob_count is None


@pytest.mark.parametrize(
    ("fields", "count"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)],
)
def test_the_number_of_likeliest_tokens_is_read_in_the_words_of_chats(
    fields: dict[str, Any], count: int | None
) -> None:
    assert chat(**fields).logprob_count == count


def test_the_number_of_likeliest_tokens_is_read_in_the_words_of_completions() -> None:
    request = wire.validate(wire.CompletionRequest, {**TEXT, "logprobs": 0})
    assert request.logprob_count == 0
    assert wire.validate(wire.CompletionRequest, TEXT).logprob_count is None


def test_tokens_to_resume_belong_to_one_answer() -> None:
    assert chat(resume_token_ids=[1, 2]).resume_token_ids == [1, 2]
    assert "resume_token_ids" in refused(wire.ChatRequest, {**CHAT, "resume_token_ids": [1], "n": 2}).message
    assert refused(wire.CompletionRequest, {"model": "m", "prompt": ["a", "b"], "resume_token_ids": [1]}).status == 400


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named_in_the_refusal(field: str) -> None:
    assert refused(wire.ChatRequest, {name: CHAT[name] for name in CHAT if name != field}).param == field


def test_the_branches_of_a_union_are_no_part_of_a_fields_name() -> None:
    error = refused(wire.ChatRequest, {**CHAT, "messages": [{"role": "user", "content": 5}]})
    assert error.param is not None
    assert error.param.startswith("messages.0.content")
    assert "[" not in error.param


def test_an_image_part_is_refused_as_no_model_here_sees() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    assert refused(wire.ChatRequest, {**CHAT, "messages": [{"role": "user", "content": [part]}]}).status == 400


def test_a_refusal_repeats_nothing_of_the_prompt() -> None:
    error = refused(wire.CompletionRequest, {"model": "m", "prompt": {"secret": "hunter2"}})
    assert "hunter2" not in error.message


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("text", ["text"]),
        ("", [""]),
        ([1, 2, 3], [[1, 2, 3]]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_is_text_or_token_ids_or_several_of_these(prompt: Any, prompts: list[Any]) -> None:
    request = wire.validate(wire.CompletionRequest, {"model": "m", "prompt": prompt, "n": 3})
    assert request.prompts == prompts
    assert request.choices == 3 * len(prompts)


@pytest.mark.parametrize("prompt", [[1, "a"], [[1], "a"], [["a"]], 5, [None]])
def test_prompts_of_several_kinds_are_refused(prompt: Any) -> None:
    assert refused(wire.CompletionRequest, {"model": "m", "prompt": prompt}).status == 400


def test_an_empty_list_of_prompts_is_refused() -> None:
    error = refused(wire.CompletionRequest, {"model": "m", "prompt": []})
    assert (error.param, error.message) == ("prompt", "Invalid value for 'prompt': it must not be empty.")


def test_more_prompts_than_are_allowed_are_refused_by_the_name_of_the_field() -> None:
    many = ["x"] * (wire.MAX_PROMPTS + 1)
    assert refused(wire.CompletionRequest, {"model": "m", "prompt": many}).param == "prompt"


def test_a_prompt_of_more_token_ids_than_there_may_be_prompts_is_one_prompt() -> None:
    ids = [7] * (wire.MAX_PROMPTS + 1)
    assert wire.validate(wire.CompletionRequest, {"model": "m", "prompt": ids}).prompts == [ids]


def test_unknown_fields_are_kept_for_engines_that_know_them() -> None:
    assert chat(guided_regex="a+").model_dump()["guided_regex"] == "a+"


def test_the_newer_name_of_the_token_limit_counts_where_both_are_given() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).token_limit == 7
    assert chat(max_tokens=5).token_limit == 5
    assert chat().token_limit is None


def test_empty_stop_sequences_are_dropped_since_they_would_stop_at_once() -> None:
    assert chat(stop=["", "a"]).stops == ["a"]
    assert chat(stop="").stops == []
    assert chat(stop="a").stops == ["a"]


@pytest.mark.parametrize(
    ("fields", "deterministic"),
    [({"temperature": 0}, True), ({"seed": 0}, True), ({"temperature": 0.7}, False), ({}, False)],
)
def test_only_greedy_or_seeded_requests_count_as_deterministic(fields: dict[str, Any], deterministic: bool) -> None:
    assert chat(**fields).deterministic is deterministic


def test_text_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].text() == "ab"


@given(st.binary(max_size=64))
def test_any_bytes_are_either_an_object_or_a_clear_refusal(body: bytes) -> None:
    with suppress(MalformedJson):
        assert isinstance(wire.parse_json(body), dict)


def test_a_byte_order_mark_before_the_body_is_passed_over() -> None:
    assert wire.parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1', b'{"a": "\xff"}'])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedJson):
        wire.parse_json(body)


def test_json_nested_too_deep_is_refused_instead_of_ending_the_process() -> None:
    with pytest.raises(MalformedJson):
        wire.parse_json(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "model", "messages", "prompt", "stop", "stream", "stream_options", "max_tokens", "n", "seed", "logit_bias",
    "logprobs", "top_logprobs", "resume_token_ids", "cache_salt", "priority", "echo",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.sampled_from([CHAT, TEXT]))
def test_any_json_object_is_either_a_request_or_a_clear_refusal(body: dict[str, Any], base: dict[str, Any]) -> None:
    kind = wire.ChatRequest if base is CHAT else wire.CompletionRequest
    try:
        request = wire.validate(kind, {**base, **body})
    except InvalidRequest as error:
        json.dumps(error.envelope())
        return
    assert request.stops is not None
    assert request.choices >= 1
    assert request.logprob_count is None or request.logprob_count >= 0
    assert isinstance(request.wants_usage, bool)


def test_a_whole_chat_answer_has_openais_shape() -> None:
    answer = wire.Answer.new("chat", "m").whole([("hi", "stop")], wire.Usage(3, 1))
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def test_a_chat_stream_opens_with_the_role_and_closes_with_the_reason() -> None:
    answer = wire.Answer.new("chat", "m")
    first, middle, last = answer.first(), answer.delta("hi"), answer.last("length")
    assert first is not None
    deltas = [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in (first, middle, last)]
    assert deltas == [({"role": "assistant", "content": ""}, None), ({"content": "hi"}, None), ({}, "length")]
    assert {chunk["object"] for chunk in (first, middle, last)} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in (first, middle, last)}) == 1


def test_a_text_stream_has_no_opening_chunk() -> None:
    answer = wire.Answer.new("text", "m")
    assert answer.first() is None
    assert answer.delta("hi", 1)["choices"][0] == {"index": 1, "text": "hi", "logprobs": None, "finish_reason": None}


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_log_probabilities_stand_with_their_choice(kind: wire.Kind) -> None:
    answer, found = wire.Answer.new(kind, "m"), {"content": []}
    whole = answer.whole([("a", "stop"), ("b", "stop")], wire.Usage(3, 2), [None, found])
    assert [choice["logprobs"] for choice in whole["choices"]] == [None, found]
    assert answer.delta("a", 1, found)["choices"][0]["logprobs"] == found
    assert answer.last("stop", 1, found)["choices"][0]["logprobs"] == found


def test_the_usage_chunk_has_no_choices() -> None:
    chunk = wire.Answer.new("chat", "m").usage(wire.Usage(3, 1))
    assert chunk["choices"] == []
    assert chunk["usage"]["total_tokens"] == 4


def test_two_answers_have_two_ids() -> None:
    assert wire.Answer.new("chat", "m").id != wire.Answer.new("chat", "m").id


@pytest.mark.parametrize("body", [None, {}])
def test_a_body_without_usage_has_none(body: dict[str, Any] | None) -> None:
    assert wire.Usage.of(body) is None


@pytest.mark.parametrize(
    "usage", [wire.Usage(3, 1), wire.Usage(3, 1, 0), wire.Usage(3, 1, 2, 0.25), wire.Usage(3, 1, 2, 0.25, 7.5)]
)
def test_usage_is_read_back_from_a_body(usage: wire.Usage) -> None:
    assert wire.Usage.of(usage.body()) == usage


def test_usage_has_openais_field_for_cached_tokens_and_our_own_for_costs() -> None:
    assert wire.Usage(3, 1, 2, 0.25, 7.5).body() == {
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 2},
        "forebay": {"compute_seconds": 0.25, "energy_joules": 7.5},
    }


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}])
def test_another_engines_usage_is_read_as_far_as_it_goes(details: Any) -> None:
    body = {"prompt_tokens": 3, "completion_tokens": None, "prompt_tokens_details": details}
    assert wire.Usage.of(body) == wire.Usage(3, 0)


def test_the_list_of_models_has_openais_shape() -> None:
    assert wire.model_list({"m": {"context_length": 8}}) == {
        "object": "list",
        "data": [{"id": "m", "object": "model", "owned_by": "forebay", "context_length": 8}],
    }
