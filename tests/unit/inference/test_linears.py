"""A model whose files are in half precision computes in float32, and GPT-2's linears are linears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from services.inference.engine.linears import Mapped, file_dtype, straighten, widen
from tests.unit.inference.tiny import save_tiny

IDS = torch.arange(40)[None]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_oss"])
@torch.inference_mode()
def test_a_model_in_half_precision_computes_the_bits_that_it_would_in_float32(family: str, tmp_path: Path) -> None:
    plain = save_tiny(tmp_path / "float32", family)
    halves = tmp_path / "bfloat16"
    AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(halves)
    assert (file_dtype(plain), file_dtype(halves)) == (torch.float32, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(halves, dtype=torch.bfloat16)
    straighten(model)
    widen(model)
    expected = AutoModelForCausalLM.from_pretrained(halves, dtype=torch.float32)(input_ids=IDS).logits
    assert torch.equal(model(input_ids=IDS).logits, expected)
    kept = [module for module in model.modules() if isinstance(module, Mapped)]
    assert kept
    assert {module.weight.dtype for module in kept} == {torch.bfloat16}


@torch.inference_mode()
def test_gpt2s_linears_become_plain_ones_over_the_same_memory(tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, "gpt2"))
    before = {name: module for name, module in model.named_modules() if type(module) is Conv1D}
    expected = model(IDS).logits
    straighten(model)
    assert len(before) == 8
    for name, module in before.items():
        linear: Any = model.get_submodule(name)
        assert (linear.in_features, linear.out_features) == (module.nx, module.nf)
        assert linear.weight.data_ptr() == module.weight.data_ptr()
    torch.testing.assert_close(model(IDS).logits, expected)


def test_weights_in_several_number_formats_are_not_mapped(tmp_path: Path) -> None:
    save_file({"one": torch.zeros(2), "other": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert file_dtype(tmp_path) is None
