"""A forward pass as a function of tensors alone: the model, its KV memory, and where the step's tokens belong.

What is computed thus can be recorded once and computed again without Python (`trace.py`).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from collections.abc import Sequence as Listing

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.inference.engine.attention import LayerShape, Layout, Step, attend_groups


class Forward(nn.Module):
    """Computes the tokens of a step, and keeps what their layers leave."""

    def __init__(
        self, model: PreTrainedModel, shapes: Listing[LayerShape], *, blocks: int, block_size: int, rows: int
    ) -> None:
        """
        Args:
            model: a causal language model whose attention is `ATTENTION`.
            shapes: what each layer keeps, as `layer_shapes` found.
            blocks, block_size: the size of the KV memory, in blocks of so many tokens.
            rows: the fewest rows of an exact product in attention.
        """
        super().__init__()
        self.model = model
        self.shapes = shapes
        self.stride = blocks + 1
        """Blocks of a head. The last one is the null block: never written, it pads short contexts."""
        self.attend_groups: Callable[..., Tensor] = attend_groups
        self.attention: Callable[[Step], Callable[..., Tensor]] = lambda step: step.attend
        """What the layers call in a step."""
        self._rows = rows
        self._heads = sorted({shape.heads for shape in shapes})
        self._windows = list(dict.fromkeys(shape.window for shape in shapes))

        def memory(dims: Listing[int]) -> nn.ParameterList:
            rows = [shape.heads * self.stride for shape in shapes]
            zeros = [_zeros(*size, model) for size in zip(rows, (block_size * dim for dim in dims), strict=True)]
            return nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in zeros)

        self.keys = memory([shape.key_dim for shape in shapes])
        self.values = memory([shape.value_dim for shape in shapes])

    @property
    def nbytes(self) -> int:
        """Bytes of the KV memory when all of it is resident."""
        return sum(memory.nbytes for memory in (*self.keys, *self.values))

    def inputs(self, ids: Tensor, positions: Tensor, sampled: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """What `forward` takes.

        Args:
            ids, positions: of the step's tokens, [tokens].
            sampled: the tokens whose logits are wanted, by their places in the step; at least one.
        """
        pages = [layout.pages[heads] for heads in self._heads]
        return ids[None], positions[None], sampled, layout.slots, layout.sizes, *pages, *layout.hidden.values()

    def forward(
        self, ids: Tensor, positions: Tensor, sampled: Tensor, slots: Tensor, sizes: Tensor, *rest: Tensor
    ) -> Tensor:
        """The logits of the sampled tokens, [sampled, vocabulary]."""
        pages = dict(zip(self._heads, rest, strict=False))
        hidden = dict(zip(self._windows, rest[len(pages) :], strict=True))
        layout = Layout(slots, sizes, pages, hidden)
        step = Step([*self.keys], [*self.values], self.shapes, layout, self.stride, self._rows, self.attend_groups)
        attend = self.attention(step)
        output = self.model(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=sampled, attend=attend
        )
        logits: Tensor = output.logits[0]
        return logits


def _zeros(rows: int, columns: int, like: PreTrainedModel) -> Tensor:
    """Zeros, since a masked position still takes part as 0 times its value, which must not be NaN.

    On CPU mapped, so that they become resident when written, and in small pages: with large ones, which numpy asks for,
    one step in some hundred that all layers and heads come to their next page in waits half a second for zeros.
    """
    device, dtype = like.device, like.dtype
    if device.type != "cpu":
        return torch.zeros(rows, columns, dtype=dtype, device=device)
    memory = mmap.mmap(-1, rows * columns * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(rows, columns)
