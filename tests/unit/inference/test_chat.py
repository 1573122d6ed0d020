"""Messages and prompts to token ids."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidRequest, UnsupportedParameter
from services.common.wire import ChatRequest, CompletionRequest
from services.inference.chat import chat_prompt, completion_prompts, prompt_text
from tests.unit.inference.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def chat(*messages: dict[str, Any], tokenizer: Any = TOKENIZER) -> str:
    request = ChatRequest(model="m", messages=list(messages))
    return str(tokenizer.decode(chat_prompt(request, tokenizer)))


def completions(prompt: Any) -> list[list[int]]:
    return completion_prompts(CompletionRequest(model="m", prompt=prompt), TOKENIZER, len(TOKENIZER))


def completion(prompt: Any) -> list[int]:
    (ids,) = completions(prompt)
    return ids


def test_a_conversation_follows_the_models_template() -> None:
    shown = chat({"role": "system", "content": "Be kind."}, {"role": "user", "content": "海"})
    assert shown == ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n海<|im_end|>\n<|im_start|>assistant\n")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert "user\none two<" in chat({"role": "user", "content": parts})


def test_a_developer_speaks_as_the_system() -> None:
    assert chat({"role": "developer", "content": "x"}) == chat({"role": "system", "content": "x"})


def test_a_model_without_a_template_gets_plain_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    assert chat({"role": "user", "content": "Hi"}, tokenizer=tokenizer) == "User: Hi\n\nAssistant:"


def test_a_templates_variables_are_the_clients_to_set() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ 'think' if enable_thinking else 'speak' }}"
    messages = [{"role": "user", "content": "Hi"}]
    for thinks, shown in ((True, "think"), (False, "speak")):
        request = ChatRequest(model="m", messages=messages, chat_template_kwargs={"enable_thinking": thinks})
        assert tokenizer.decode(chat_prompt(request, tokenizer)) == shown


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "tools", "messages", "self"])
def test_what_is_no_variable_of_a_template_is_refused_among_them(name: str) -> None:
    request = ChatRequest(model="m", messages=[{"role": "user", "content": "Hi"}], chat_template_kwargs={name: "x"})
    with pytest.raises(UnsupportedParameter, match=name) as caught:
        chat_prompt(request, TOKENIZER)
    assert caught.value.param == "chat_template_kwargs"


def test_messages_that_the_template_refuses_are_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="roles out of order") as caught:
        chat({"role": "assistant", "content": "I begin."})
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "message",
    [{"role": "tool", "content": "42"}, {"role": "assistant", "tool_calls": [{"id": "1"}]}],
)
def test_tool_calls_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter):
        chat({"role": "user", "content": "x"}, message)


@pytest.mark.parametrize("prompt", ["abc", ["abc"], TOKENIZER.encode("abc")])
def test_a_prompt_is_text_or_a_list_of_one_or_ids(prompt: Any) -> None:
    assert completion(prompt) == TOKENIZER.encode("abc")


def test_an_empty_prompt_begins_with_a_special_token() -> None:
    assert completion("") == [TOKENIZER.eos_token_id]


def test_an_id_that_is_not_in_the_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"{len(TOKENIZER)} is not a token id"):
        completion([1, len(TOKENIZER)])


@pytest.mark.parametrize("prompts", [["ab", "c"], [TOKENIZER.encode("ab"), TOKENIZER.encode("c")]])
def test_several_prompts_are_text_or_ids(prompts: Any) -> None:
    assert completions(prompts) == [TOKENIZER.encode("ab"), TOKENIZER.encode("c")]


def test_a_wrong_prompt_among_several_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        completions([[1], []])


@pytest.mark.parametrize("prompt", ["海 x", TOKENIZER.encode("海 x")])
def test_a_prompt_is_shown_as_text_whether_it_came_as_text_or_ids(prompt: Any) -> None:
    assert prompt_text(prompt, TOKENIZER) == "海 x"


def test_text_that_is_not_unicode_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest):
        completion_prompts(CompletionRequest.model_construct(model="m", prompt="\ud800"), TOKENIZER, 100)
