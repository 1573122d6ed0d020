"""How a model is dealt out to ranks. That they compute the same is in the integration tests, with real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.common.settings import InferenceSettings
from services.inference.engine.errors import SourceError, UnsupportedModel
from services.inference.engine.load import load, pick_device
from services.inference.engine.parallel import devices, placement

CPU = torch.device("cpu")


@pytest.fixture
def of_ranks(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As torchrun tells rank 1 of 2."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return monkeypatch


def test_one_process_has_the_whole_model_on_its_device(tiny_folder: Path) -> None:
    assert placement(tiny_folder, CPU) == {"device_map": "cpu"}
    assert devices(CPU) == [CPU]


def test_each_rank_has_a_gpu_of_its_own(of_ranks: pytest.MonkeyPatch) -> None:
    assert pick_device("cuda") == torch.device("cuda:1")
    assert devices(pick_device("cuda")) == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_a_model_whose_heads_cannot_be_dealt_out_is_refused(tiny_folder: Path, of_ranks: pytest.MonkeyPatch) -> None:
    assert placement(tiny_folder, CPU)["distributed_config"].tp_size == 2
    of_ranks.setenv("WORLD_SIZE", "4")
    with pytest.raises(UnsupportedModel, match="split over 4 ranks: it has 4 attention heads with 2 pairs of keys"):
        placement(tiny_folder, CPU)


def test_a_split_model_has_no_adapters(tiny_folder: Path, of_ranks: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="split over several ranks has no adapters"):
        load(str(tiny_folder), InferenceSettings(device="cpu"), adapters={"one": "/x"})


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_split_model_is_not_quantised(tiny_folder: Path, of_ranks: pytest.MonkeyPatch, quantization: str) -> None:
    settings = InferenceSettings.model_validate({"device": "cpu", "quantization": quantization})
    with pytest.raises(SourceError, match="split over several ranks is not quantised"):
        load(str(tiny_folder), settings)
