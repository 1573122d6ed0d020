"""Weights in 4 bits: bitsandbytes' format, with scales for what the model reads, where 4 bits are enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from services.common.settings import InferenceSettings
from services.inference.engine.load import load
from services.inference.engine.nf4 import in_four_bits, nf4
from services.inference.engine.pack import PackedLinear
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence
from tests.unit.inference.tiny import byte_tokenizer


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def error(values: Tensor, right: Tensor) -> float:
    return float((values - right).norm() / right.norm())


def plain_nf4(weight: Tensor) -> Tensor:
    return dequantize_4bit(*quantize_4bit(weight, quant_type="nf4"))


def test_it_computes_what_the_plain_linear_does_better_than_the_largest_weights_scale() -> None:
    linear = nn.Linear(192, 256)
    rows = torch.randn(50, 192) * torch.linspace(0.1, 5, 192)
    made = nf4(linear, rows.square().mean(0))
    right = linear(rows)
    usual = nn.functional.linear(rows, plain_nf4(linear.weight), linear.bias)
    assert error(made(rows), right) < 0.95 * error(usual, right)


def test_what_bitsandbytes_reads_is_what_was_rounded() -> None:
    linear = nn.Linear(128, 64, bias=False)
    made: Any = nf4(linear)
    read = dequantize_4bit(made.weight.data, made.quant_state)
    assert read.shape == linear.weight.shape
    assert error(made(torch.eye(128)).t(), read) < 0.005
    assert error(read, linear.weight) < error(plain_nf4(linear.weight), linear.weight)


def test_a_row_of_zeros_stays_one() -> None:
    linear = nn.Linear(64, 96, bias=False)
    linear.weight[5] = 0
    assert nf4(linear)(torch.randn(3, 64))[:, 5].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("inputs", "outputs", "four"),
    [(64, 128, True), (64, 64, False), (128, 64, False), (48, 96, False), (64, 100, False)],
    ids=["widens", "square", "narrows", "no whole blocks", "not for the kernel"],
)
def test_only_linears_that_widen_go_to_four_bits(inputs: int, outputs: int, four: bool) -> None:
    assert in_four_bits(nn.Linear(inputs, outputs, device="meta")) == four


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random Llama whose linears have whole blocks."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.inference_mode(mode=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_model_is_kept_in_four_bits_where_it_widens_and_in_eight_elsewhere(folder: Path) -> None:
    def logits(quantization: str) -> Tensor:
        settings = InferenceSettings.model_validate({"kv_blocks": 64, "device": "cpu", "quantization": quantization})
        loaded = load(str(folder), settings)
        if quantization == "nf4":
            model = loaded.runner._forward.model  # type: ignore[union-attr]
            kinds = {name.rsplit(".")[-1]: type(module) for name, module in model.named_modules()}
            narrow = dict.fromkeys(["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "lm_head"], PackedLinear)
            expected = narrow | dict.fromkeys(["gate_proj", "up_proj"], Linear4bit)
            assert {name: kinds[name] for name in expected} == expected
            assert loaded.kernel.startswith("bitsandbytes-nf4, ")
        ids = list(range(60, 100))
        sequence = Sequence(ids, len(ids), 1, blocks=loaded.pool.take(3))
        return loaded.runner.forward([Work(sequence, len(ids))])

    assert error(logits("nf4"), logits("none")) < 0.25
