"""Which pod gets a request."""

import random

from services.gateway.upstreams.choose import Upstream, choose


def pod(name: str, *, inflight: int = 0, ready: bool = True, models: tuple[str, ...] = ("m",)) -> Upstream:
    return Upstream(f"http://{name}", models={model: {} for model in models}, ready=ready, inflight=inflight)


def test_the_pod_with_the_fewest_requests_in_flight_is_taken() -> None:
    busy, idle = pod("busy", inflight=3), pod("idle", inflight=1)
    assert choose([busy, idle], "m") is idle


def test_a_pod_that_is_not_ready_is_not_taken() -> None:
    assert choose([pod("down", ready=False)], "m") is None


def test_a_pod_that_does_not_serve_the_model_is_not_taken() -> None:
    able = pod("able", inflight=9, models=("m", "n"))
    assert choose([pod("other"), able], "n") is able


def test_a_pod_that_was_tried_is_not_taken_again() -> None:
    first, second = pod("first"), pod("second", inflight=5)
    assert choose([first, second], "m", tried=[first]) is second
    assert choose([first], "m", tried=[first]) is None


def test_an_answer_is_resumed_only_where_the_engine_is_known_to_do_so() -> None:
    ours, other = pod("ours", inflight=5), pod("other")
    ours.models["m"] = {"owned_by": "forebay"}
    other.models["m"] = {"owned_by": "vllm"}
    assert choose([ours, other], "m") is other
    assert choose([ours, other], "m", resuming=True) is ours
    assert choose([other], "m", resuming=True) is None


def test_equals_share_the_requests() -> None:
    pods = [pod("a"), pod("b"), pod("c")]
    rng = random.Random(0)
    taken = {choose(pods, "m", rng=rng) for _ in range(50)}
    assert taken == set(pods)
