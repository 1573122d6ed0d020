"""What a model's weights will take, known before any of them is read: from the shapes that its configuration makes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from services.inference.engine.linears import file_dtype, is_linear, straighten
from services.inference.engine.nf4 import NF4_BYTES, in_four_bits

COPIES = 3
"""Of a weight in float32 at a time, while it is packed: joined with its siblings', scaled, rounded."""


class Weight(NamedTuple):
    """Bytes of a model."""

    held: int
    """When it is ready."""
    peak: int
    """While it is brought into memory."""


def weigh(folder: Path, device: torch.device, quantization: str, *, packs: bool) -> Weight:
    """What the model in a folder takes on a device.

    Args:
        packs: whether linears are packed, which on CPU lays a weight that an embedding shares out a second time.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    straighten(model)
    whole = 4 if device.type == "cpu" else 2
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and is_linear(module)]
    head = model.get_output_embeddings()
    if device.type == "cpu" and packs:
        kept = {id(weight): weight for module in model.modules() if module not in linears
                for weight in module.parameters(recurse=False)}  # fmt: skip
        widths = [_width(linear, quantization, head) for linear in linears]
        sizes = [linear.weight.numel() for linear in linears]
        # What is in one number format is mapped; else all of it is copied to float32 first.
        peak = 4 * (COPIES * max(sizes, default=0) if file_dtype(folder) else sum(sizes))
    else:
        quantized = [linear for linear in linears if linear is not head and quantization != "none"]
        linears, widths = quantized, [NF4_BYTES if quantization == "nf4" else 1.0] * len(quantized)
        narrow = {id(linear.weight) for linear in quantized}
        kept = {id(weight): weight for weight in model.parameters() if id(weight) not in narrow}
        peak = whole * max((linear.weight.numel() for linear in linears), default=0)
    held = sum(width * linear.weight.numel() for width, linear in zip(widths, linears, strict=True))
    held += whole * sum(weight.numel() for weight in kept.values())
    return Weight(int(held), int(held + peak))


def _width(linear: nn.Linear, quantization: str, head: nn.Module | None) -> float:
    """Bytes of one of a linear's weights as it is packed on CPU."""
    if quantization == "nf4" and linear is not head and in_four_bits(linear):
        return NF4_BYTES
    return 4 if quantization == "none" else 1
