"""Time and energy of the steps, charged to their requests."""

from __future__ import annotations

import itertools

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.inference.asking import StartEngine, submit, tokens


def test_the_time_of_all_steps_is_charged_to_their_requests(
    start_engine: StartEngine, registry: CollectorRegistry
) -> None:
    engine = start_engine(kv_blocks=4, max_batch=4, step_tokens=4)
    several = [submit(engine, [i, 1, 2, 3], max_tokens=30) for i in range(4)]
    for one in several:
        list(one)
    charged = sum(one.sequence.seconds for one in several)
    for name in ("forebay_engine_compute_seconds_total", "forebay_engine_step_seconds_sum"):
        assert registry.get_sample_value(name, {"model": engine.name}) == pytest.approx(charged)


def test_the_energy_of_all_steps_is_charged_to_their_requests(
    start_engine: StartEngine, registry: CollectorRegistry
) -> None:
    engine = start_engine(energy=itertools.count(100.0, 2.5).__next__)  # so much between any two readings
    several = [submit(engine, [i, 1, 2, 3]) for i in range(4)]
    for one in several:
        list(one)
    steps = registry.get_sample_value("forebay_engine_step_seconds_count", {"model": engine.name})
    assert steps is not None
    charged = sum(one.sequence.joules or 0 for one in several)
    assert charged == pytest.approx(2.5 * steps)
    name = "forebay_engine_energy_joules_total"
    assert registry.get_sample_value(name, {"model": engine.name}) == pytest.approx(charged)


def test_where_energy_is_not_known_it_is_absent(start_engine: StartEngine, registry: CollectorRegistry) -> None:
    engine = start_engine()
    generation = submit(engine)
    list(generation)
    assert generation.sequence.seconds > 0
    assert generation.sequence.joules is None
    assert registry.get_sample_value("forebay_engine_energy_joules_total", {"model": engine.name}) is None


def test_an_energy_counter_that_fails_is_not_asked_again(start_engine: StartEngine) -> None:
    readings = iter([1.0, 2.0, 3.0, None])
    engine = start_engine(energy=readings.__next__)
    generation = submit(engine)
    assert len(tokens(generation)) == 8
    assert generation.sequence.joules is None
