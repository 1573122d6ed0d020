"""Weights in 4 bits: bitsandbytes' nf4 (Dettmers et al. 2023, "QLoRA"), with scales that suit what the model reads.

bitsandbytes scales each block of 64 weights by its largest. A smaller scale rounds the many finer and cuts off the one;
which is better shows in the error of the linear's output, where a weight counts as much as its input is loud (as in Lin
et al. 2023, "AWQ"). So several scales are tried for each block, on the inputs that a short text makes. Storage and
kernels stay bitsandbytes'.

Only linears that make more values than they read go down to 4 bits, as the way into the hidden layer does; the others,
and the output's, stay at 8. Keys, values and the way back from the hidden layer do most of the damage, by measurement
(llama.cpp's mixes spare the same), and attention's square ones add to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.inference.engine.pack import can_pack

BLOCK = 64
"""Weights with a scale of their own."""
NF4_BYTES = 1 / 2 + 4 / BLOCK
"""Of a weight with its part of the scale, in float32."""
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""What is tried, as parts of a block's largest weight."""
CHUNK = 1 << 20
"""Weights that are rounded at a time, so that little memory is taken for it."""
OUTPUTS = 32
"""bitsandbytes' CPU kernel takes outputs in multiples of it."""


def in_four_bits(linear: nn.Linear) -> bool:
    """Whether a linear is to have 4 bits, and can: it makes more values than it reads, in whole blocks."""
    inputs, outputs = linear.in_features, linear.out_features
    return outputs > inputs and inputs % BLOCK == 0 and outputs % OUTPUTS == 0


def pack_nf4(model: PreTrainedModel, power: Mapping[nn.Module, Tensor]) -> None:
    """Swaps those of the model's linears that are to have 4 bits.

    Args:
        power: the mean square of each input of a linear, [in]; without it, all its weights count the same.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    places: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and can_pack(child) and child is not head and in_four_bits(child):
                if child not in places:
                    places[child] = nf4(child, power.get(child))
                    child.weight = nn.Parameter(child.weight.new_empty(0), requires_grad=False)
                setattr(module, name, places[child])


def nf4(linear: nn.Linear, power: Tensor | None = None) -> nn.Linear:
    """A linear in nf4, with the scales that suit inputs of such a mean square, [in]."""
    import bitsandbytes  # noqa: PLC0415 - it takes a second, and most pods have no use for it

    functional: Any = bitsandbytes.functional
    layers: Any = bitsandbytes.nn
    inputs, outputs = linear.in_features, linear.out_features
    weight = linear.weight.float().reshape(-1, BLOCK)
    counts = (torch.ones(inputs) if power is None else power).reshape(-1, BLOCK)
    counts = counts.expand(outputs, -1, -1).reshape(-1, BLOCK)
    codes = functional.get_4bit_type("nf4", device="cpu")
    size = CHUNK // BLOCK
    parts = [_rounded(*pair, codes) for pair in zip(torch.split(weight, size), torch.split(counts, size), strict=True)]
    nibbles = torch.cat([part for part, _ in parts]).view(-1, 2)
    state = functional.QuantState(
        torch.cat([scales for _, scales in parts]),
        shape=torch.Size((outputs, inputs)),
        code=codes,
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.float32,
    )
    made = layers.Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.float32, quant_type="nf4", device="meta")
    made.weight = layers.Params4bit(
        (nibbles[:, :1] << 4) | nibbles[:, 1:],
        quant_state=state,
        blocksize=BLOCK,
        quant_type="nf4",
        compress_statistics=False,
        module=made,
        bnb_quantized=True,
    )
    made.quant_state, made.bias = state, linear.bias
    result: nn.Linear = made.eval()
    return result


def scale_bytes(model: nn.Module) -> int:
    """Bytes of the scales of all weights in nf4."""
    states = [getattr(module, "quant_state", None) for module in model.modules()]
    return sum(state.absmax.nbytes for state in states if state is not None)


def _rounded(weights: Tensor, counts: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks [blocks, 64] as numbers of codes, uint8, and their scales [blocks].

    Args:
        counts: how much the square of a weight's error counts.
    """
    largest = weights.abs().amax(1, keepdim=True).clamp_min(1e-30)
    between = (codes[1:] + codes[:-1]) / 2
    best, scale = torch.full_like(largest, torch.inf), largest
    chosen = torch.zeros_like(weights, dtype=torch.int32)
    for part in SCALES:
        # bitsandbytes' CPU kernel keeps scales in bfloat16, so that is what is rounded for.
        tried = (largest * part).bfloat16().float()
        numbers = torch.bucketize(weights / tried, between, out_int32=True)
        error = (codes[numbers] * tried).sub_(weights).square_().mul_(counts).sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        chosen, scale = torch.where(better, numbers, chosen), torch.where(better, tried, scale)
    return chosen.to(torch.uint8), scale[:, 0]
