"""What loading takes from the machine, and how much of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.common.settings import InferenceSettings
from services.inference.engine import load
from services.inference.engine.errors import SourceError, UnsupportedModel

WriteLimits = Callable[..., None]


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(tiny_folder: Path, write_limits: WriteLimits) -> None:
    write_limits(memory_max="1000", memory_current="0", memory_stat="")
    with pytest.raises(SourceError, match="Too little memory"):
        load.load(str(tiny_folder), InferenceSettings(device="cpu"))


def test_the_kv_cache_is_enough_for_a_full_batch_of_usual_requests(tiny_folder: Path) -> None:
    loaded = load.load(str(tiny_folder), InferenceSettings(device="cpu", max_batch=4))
    assert loaded.pool.tokens == 4 * 512
    assert loaded.context_length == 512


def test_the_kv_cache_shrinks_to_what_the_budget_leaves(tiny_folder: Path) -> None:
    asked: list[int] = []

    def make_room(needed: int) -> int:
        asked.append(needed)
        return 0

    loaded = load.load(str(tiny_folder), InferenceSettings(device="cpu", max_batch=4), make_room=make_room)
    assert loaded.pool.tokens == 512, "one request of full length"
    assert asked == sorted(asked)


def test_every_phase_is_told_and_timed(tiny_folder: Path) -> None:
    told: list[str] = []
    loaded = load.load(str(tiny_folder), InferenceSettings(device="cpu", kv_blocks=8), phase=told.append)
    assert told == list(loaded.seconds)
    assert told[0] == "resolve"
    assert told[-1] == "warm-up"
    assert all(seconds >= 0 for seconds in loaded.seconds.values())


def test_the_makers_settings_are_the_defaults(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9}')
    found = load.load(str(folder), InferenceSettings(device="cpu", kv_blocks=8)).defaults
    assert (found.temperature, found.top_k, found.top_p) == (0.6, 20, 0.9)
    plain = load.load(str(tiny_folder), InferenceSettings(device="cpu", kv_blocks=8)).defaults
    assert (plain.temperature, plain.top_k, plain.top_p) == (1.0, 0, 1.0)


def test_int8_is_refused_where_no_kernel_multiplies_it(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UnsupportedModel, match="no linears that can be computed in int8"):
        load.load(str(tiny_folder), InferenceSettings(device="cpu", kv_blocks=8, quantization="int8"))


def test_a_model_whose_linears_cannot_be_packed_is_served_as_it_is(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert load.load(str(tiny_folder), InferenceSettings(device="cpu", kv_blocks=8)).kernel == "torch"
