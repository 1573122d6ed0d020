"""What a model will take is known before it is read, and a model that fits only quantised is loaded quantised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.common.settings import InferenceSettings
from services.inference.engine import load as loading
from services.inference.engine.errors import SourceError
from services.inference.engine.load import load
from services.inference.engine.weigh import weigh
from tests.unit.inference.tiny import save_tiny

CPU = torch.device("cpu")
QUANTIZATIONS = ["none", "int8", "nf4"]


def settings(quantization: str) -> InferenceSettings:
    return InferenceSettings.model_validate({"kv_blocks": 8, "device": "cpu", "quantization": quantization})


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "deepseek_v3", "gemma3_text"])
def test_a_model_takes_what_was_foreseen(family: str, quantization: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, family)
    loaded = load(str(folder), settings(quantization))
    held = loaded.bytes - loaded.runner.bytes
    assert weigh(folder, CPU, quantization, packs=True).held == pytest.approx(held, rel=0.02)


def test_files_in_half_precision_take_no_less(tiny_folder: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert weigh(tmp_path, CPU, "none", packs=True) == weigh(tiny_folder, CPU, "none", packs=True)


def test_on_a_gpu_weights_count_in_bfloat16_or_as_bitsandbytes_keeps_them(tiny_folder: Path) -> None:
    gpu = torch.device("cuda")
    held = {name: weigh(tiny_folder, gpu, name, packs=True).held for name in QUANTIZATIONS}
    assert held["none"] == AutoModelForCausalLM.from_pretrained(tiny_folder).num_parameters() * 2
    assert held["nf4"] < held["int8"] < held["none"]


def test_a_model_that_fits_only_quantised_is_loaded_quantised(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {name: weigh(tiny_folder, CPU, name, packs=True).peak for name in QUANTIZATIONS}
    monkeypatch.setattr(loading, "free_memory", lambda _device: (peaks["int8"] + peaks["none"]) // 2)
    with pytest.raises(SourceError, match="Too little memory: the weights need"):
        load(str(tiny_folder), settings("none"))
    assert load(str(tiny_folder), settings("int8")).quantization == "int8"
    monkeypatch.setattr(loading, "free_memory", lambda _device: peaks["int8"] - 1)
    with pytest.raises(SourceError, match="Too little memory"):
        load(str(tiny_folder), settings("int8"))


def test_the_budget_of_all_models_is_asked_for_the_width_that_will_be_held(tiny_folder: Path) -> None:
    asked: list[int] = []

    def make_room(wanted: int) -> int:
        asked.append(wanted)
        return 1 << 40

    load(str(tiny_folder), settings("int8"), make_room=make_room)
    assert asked[0] == weigh(tiny_folder, CPU, "int8", packs=True).held
