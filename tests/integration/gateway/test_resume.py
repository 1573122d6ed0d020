"""Streams of a real pod, cut at any byte and continued by its engine: to the client they are the uncut ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway.upstreams.breaker import Rules
from tests.integration.inference.pod import Pod, running_pod
from tests.unit.gateway.dispatching import Dispatched, Dispatcher
from tests.unit.gateway.scripted_pod import Handler, scripted_pod
from tests.unit.inference.tiny import save_tiny

LEGS = 3
RULES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1.2, "seed": 7},
    "without a seed": {"temperature": 1.2},
    "penalties": {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "filters": {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "logit_bias": {"5": 3, "250": -100}, "seed": 8},
}


@dataclass
class Cut:
    """Pods that answer by the real one, each stream cut where `places` says, and whole once there are no more."""

    pod: Pod
    places: list[int] = field(default_factory=list)
    """Bytes after which the connection ends, modulo the stream's length; for each stream one."""
    seeds: list[int | None] = field(default_factory=list)

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        self.seeds.append(body.get("seed"))
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        answer = self.pod.post(path, body)
        assert answer.status == 200, answer.data
        place = self.places.pop(0) % (len(answer.data) + 1) if self.places else None
        handler.start_stream()
        handler.send_piece(answer.data[:place])
        handler.end_stream() if place is None else handler.break_off()


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cut, Dispatcher]]:
    """A pod with a tiny model of random weights, whose every token is a byte, so that most characters are split."""
    home: Path = tmp_path_factory.mktemp("home")
    folder = save_tiny(home / "tiny", "llama")
    with running_pod(home, home, model=f"m={folder}", kv_blocks=64) as pod, ExitStack() as stack:
        script = Cut(pod)
        pods = [stack.enter_context(scripted_pod(script)) for _ in range(LEGS)]
        dispatcher = Dispatcher(*pods, rules=Rules(in_a_row=1000, rate=2))  # they fail in each example, and stay
        stack.callback(dispatcher.close)
        yield script, dispatcher


def choices_of(got: Dispatched) -> list[dict[str, Any]]:
    """The chunks' choices, one choice after the other, without numbers that depend on how many tokens were computed
    together."""
    choices = [choice for event in got.answer if event != "[DONE]" for choice in event["choices"]]
    return sorted(({**one, "logprobs": bool(one["logprobs"])} for one in choices), key=lambda one: int(one["index"]))


@settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rule=st.sampled_from([*RULES]),
    prompt=st.none() | st.text(min_size=1, max_size=8),
    more=st.fixed_dictionaries(
        {"max_tokens": st.integers(1, 24), "ignore_eos": st.booleans()},
        optional={"stop": st.sampled_from([["a", "é"]]), "n": st.integers(1, 3)},
    ),
    logprobs=st.booleans(),
    places=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=LEGS - 1),
)
def test_a_stream_that_is_cut_at_any_byte_is_the_uncut_one(
    cut: tuple[Cut, Dispatcher],
    rule: str,
    prompt: str | None,
    more: dict[str, Any],
    logprobs: bool,
    places: list[int],
) -> None:
    script, dispatcher = cut
    asked = {"stream": True, "stream_options": {"include_usage": True}, **RULES[rule], **more}
    asked |= {"logprobs": logprobs} if prompt is None else {"prompt": prompt, **({"logprobs": 1} if logprobs else {})}
    script.places, script.seeds = list(places), []
    dispatcher.fleet.look()
    got = dispatcher.ask(asked)
    seed = script.seeds[0]
    script.places = []
    dispatcher.fleet.look()
    uncut = dispatcher.ask({**asked, "seed": seed})
    assert got.spent.outcome == uncut.spent.outcome == "ok"
    assert choices_of(got) == choices_of(uncut)
    assert sorted(got.spent.token_ids) == sorted(uncut.spent.token_ids)
    assert got.events[-1] == "[DONE]"
    usage, expected = (one.events[-2]["usage"] for one in (got, uncut))
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[name] == expected[name]
    assert got.spent.tokens.total_tokens == uncut.spent.tokens.total_tokens
