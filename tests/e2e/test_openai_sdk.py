"""The whole stack under clients that nobody here wrote: the official OpenAI SDK, and curl."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests.e2e.running import Stack

QUESTION = [{"role": "user", "content": "Name three rivers of Europe."}]


@pytest.fixture
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0, timeout=120) as client:
        yield client


class TestSdk:
    def test_a_chat_is_answered(self, sdk: openai.OpenAI, stack: Stack) -> None:
        answer = sdk.chat.completions.create(model=stack.model, messages=QUESTION, max_tokens=16, temperature=0)
        choice = answer.choices[0]
        assert choice.message.role == "assistant"
        assert choice.message.content
        assert answer.model == stack.model
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= 16
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert choice.finish_reason in ("stop", "length")

    def test_a_stream_says_the_same_as_the_whole_answer(self, sdk: openai.OpenAI, stack: Stack) -> None:
        asked = {"model": stack.model, "messages": QUESTION, "max_completion_tokens": 24, "temperature": 0}
        fresh = {"Cache-Control": "no-cache"}
        whole = sdk.chat.completions.create(**asked, extra_headers=fresh)
        stream = sdk.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}, extra_headers=fresh
        )
        chunks = list(stream)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len([piece for piece in pieces if piece]) > 5, "token by token, not all at once"
        assert chunks[-1].usage is not None
        assert whole.usage is not None
        assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    def test_a_completion_is_answered(self, sdk: openai.OpenAI, stack: Stack) -> None:
        answer = sdk.completions.create(
            model=stack.model, prompt="The capital of France is", max_tokens=5, temperature=0
        )
        assert "Paris" in answer.choices[0].text
        assert answer.choices[0].finish_reason == "length"

    def test_several_choices_come_with_log_probabilities(self, sdk: openai.OpenAI, stack: Stack) -> None:
        answer = sdk.chat.completions.create(
            model=stack.model, messages=QUESTION, max_tokens=8, seed=1, n=2, logprobs=True, top_logprobs=3
        )
        assert [choice.index for choice in answer.choices] == [0, 1]
        for choice in answer.choices:
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in choice.logprobs.content)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.completion_tokens == sum(
            len(choice.logprobs.content) for choice in answer.choices if choice.logprobs and choice.logprobs.content
        )

    def test_the_models_are_listed_and_found(self, sdk: openai.OpenAI, stack: Stack) -> None:
        assert [model.id for model in sdk.models.list()] == [stack.model]
        assert sdk.models.retrieve(stack.model).id == stack.model

    def test_a_stop_sequence_ends_the_text_before_it(self, sdk: openai.OpenAI, stack: Stack) -> None:
        asked = {"model": stack.model, "prompt": "one two three four", "temperature": 0}
        text = sdk.completions.create(**asked, max_tokens=20).choices[0].text
        stop = text[6:9]
        cut = sdk.completions.create(**asked, max_tokens=20, stop=[stop]).choices[0]
        assert cut.text == text[: text.index(stop)]
        assert cut.finish_reason == "stop"

    def test_a_seed_makes_sampling_repeatable(self, sdk: openai.OpenAI, stack: Stack) -> None:
        def ask(seed: int) -> str | None:
            answer = sdk.chat.completions.create(
                model=stack.model,
                messages=QUESTION,
                max_tokens=16,
                temperature=1.2,
                seed=seed,
                extra_headers={"Cache-Control": "no-cache"},
            )
            return answer.choices[0].message.content

        assert ask(7) == ask(7)
        assert ask(7) != ask(8)


class TestSdkErrors:
    def test_a_wrong_key_is_an_authentication_error(self, stack: Stack) -> None:
        with (
            openai.OpenAI(base_url=f"{stack.url}/v1", api_key="fb-nobody", max_retries=0) as wrong,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            wrong.models.list()
        assert caught.value.code == "invalid_api_key"

    def test_an_unknown_model_is_a_not_found_error(self, sdk: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            sdk.chat.completions.create(model="none", messages=QUESTION)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    def test_a_used_up_limit_is_a_rate_limit_error_with_a_retry_after(self, stack: Stack) -> None:
        key = new_key(stack, requests_per_minute=1)
        with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0, timeout=120) as limited:
            limited.completions.create(model=stack.model, prompt="Hi", max_tokens=1)
            with pytest.raises(openai.RateLimitError) as caught:
                limited.completions.create(model=stack.model, prompt="Hi", max_tokens=1)
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 60

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"max_tokens": -1}, "invalid_request"),
            ({"messages": [{"role": "user", "content": "river " * 20_000}]}, "context_length_exceeded"),
            ({"modalities": ["text", "audio"]}, "unsupported_parameter"),
        ],
        ids=["negative max_tokens", "too long", "unsupported"],
    )
    def test_what_cannot_be_done_is_a_bad_request_error(
        self, sdk: openai.OpenAI, stack: Stack, fields: dict[str, object], code: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.chat.completions.create(**{"model": stack.model, "messages": QUESTION, **fields})
        assert caught.value.code == code

    def test_a_time_out_that_is_too_short_is_a_504(self, sdk: openai.OpenAI, stack: Stack) -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(
                model=stack.model, messages=QUESTION, max_tokens=500, extra_headers={"X-Forebay-Timeout": "0.3"}
            )
        assert caught.value.status_code == 504


@pytest.mark.requires("curl")
def test_curl_shows_the_stream_as_it_comes(stack: Stack) -> None:
    body = {"model": stack.model, "messages": QUESTION, "max_tokens": 12, "temperature": 0, "stream": True}
    command = ["curl", "-sN", f"{stack.url}/v1/chat/completions", "-H", f"Authorization: Bearer {stack.key}"]
    command += ["-H", "Content-Type: application/json", "-H", "Cache-Control: no-cache", "-d", json.dumps(body)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    events = output.split("\n\n")
    assert all(event.startswith("data: ") for event in events if event)
    assert events[-2:] == ["data: [DONE]", ""]
    assert len(events) > 8


def test_ten_clients_streaming_at_once_see_their_tokens_interleaved(stack: Stack) -> None:
    """Each client notes when its tokens came; had they been served one after another, no two would overlap."""
    order: list[int] = []
    answered: list[str] = []

    def client(number: int) -> None:
        body = {"model": stack.model, "prompt": f"{number}: once upon a time", "max_tokens": 24, "stream": True}
        headers = {"Authorization": f"Bearer {stack.key}"}
        with httpx2.stream("POST", f"{stack.url}/v1/completions", json=body, headers=headers, timeout=120) as answer:
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    answered.append(line)
                elif line:
                    order.append(number)

    clients = [threading.Thread(target=client, args=[number]) for number in range(10)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert len(answered) == 10
    changes = sum(earlier != later for earlier, later in itertools.pairwise(order))
    assert changes > len(order) / 2, "runs of one client's tokens are short"


def new_key(stack: Stack, **limits: int) -> str:
    """A key with limits of its own, made as an admin makes it."""
    credentials = {"username": stack.admin_username, "password": stack.admin_password}
    token = httpx2.post(f"{stack.url}/login", json=credentials).json()["access_token"]
    body = {"tenant": "demo", "name": f"limited {limits}", **limits}
    answer = httpx2.post(f"{stack.url}/admin/keys", json=body, headers={"Authorization": f"Bearer {token}"})
    return str(answer.json()["key"])
