"""A model's linears before they are packed: all of one class, with their weights still in the file where they can be.

safetensors are mapped: a weight in the file's own number format takes no memory until it is copied. A model whose files
are in half precision would have all of its weights copied to float32 before the first of them is packed or quantised,
which may be four times what it has then, so each linear is widened when it is computed and when it is packed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""By their names in the header of safetensors."""


class Mapped(nn.Linear):
    """A float32 linear whose weight is in half precision, as the file has it."""

    def forward(self, values: Tensor) -> Tensor:
        """[…, in] to […, out]."""
        return functional.linear(values, self.weight.float(), self.bias)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear and nothing more."""
    return type(module) in (nn.Linear, Mapped)


def file_dtype(folder: Path) -> torch.dtype | None:
    """The number format of all weights in a folder, so that they can be mapped; None where they have several."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        found |= {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
    return DTYPES.get(found.pop()) if len(found) == 1 else None


def widen(model: PreTrainedModel) -> None:
    """Makes a model in half precision compute in float32, with the weights of its linears as they are."""
    linears = {module for module in model.modules() if is_linear(module)}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.is_floating_point() and not (module in linears and name == "weight"):
                weight.data = weight.data.float()  # an embedding's too, and thus that of a head which shares it
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.float()
        if module._non_persistent_buffers_set:
            _compute_buffers(model, module)
    for module in linears:
        if module.weight.dtype != torch.float32:
            module.__class__ = Mapped


def _compute_buffers(model: PreTrainedModel, module: nn.Module) -> None:
    """Computes again what is not read from the file but made with the module, and was rounded to half precision."""
    weights = module._parameters
    module._parameters = {
        name: weight if weight is None else nn.Parameter(torch.empty_like(weight, device="meta"))
        for name, weight in weights.items()
    }
    try:
        model._init_weights(module)  # type: ignore[no-untyped-call]
    finally:
        module._parameters = weights


def straighten(model: nn.Module) -> None:
    """Swaps GPT-2's linears, which keep their weights transposed, for plain ones over the same memory."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is Conv1D:
                linear = nn.Linear(child.nx, child.nf, device="meta")
                linear.weight = nn.Parameter(child.weight.t(), requires_grad=False)
                linear.bias = child.bias
                setattr(module, name, linear)
