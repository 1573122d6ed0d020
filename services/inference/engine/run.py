"""One forward pass over all tokens of a step, through transformers' own modelling code.

The tokens of all requests go in as one row, `[1, tokens]`, with their positions, and no cache object: keys and values
live in the paged memory here, which only our attention knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Listing
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.inference.engine.attention import Group, LayerShape, Step, exactness
from services.inference.engine.errors import UnsupportedModel
from services.inference.engine.lora import Adapters
from services.inference.engine.schedule import Work

SHORT_CONTEXT = 128
"""Tokens of context up to which all single tokens are computed together."""


class Runner:
    """The model, its KV memory, and the forward pass of a step."""

    def __init__(
        self,
        model: PreTrainedModel,
        shapes: Listing[LayerShape],
        adapters: Adapters | None = None,
        *,
        blocks: int,
        block_size: int,
    ) -> None:
        """
        Args:
            model: a causal language model whose attention is `ATTENTION`.
            shapes: what each layer keeps, as `layer_shapes` found.
            adapters: those of the model, where it has some.
            blocks, block_size: the size of the KV memory, in blocks of so many tokens.
        """
        self._model = model
        self._adapters = adapters
        self._block_size = block_size
        self._stride = blocks + 1  # the last block is the null block: never written, it pads short contexts
        device, dtype = model.device, model.dtype
        self._device = device
        rows = [shape.heads * self._stride for shape in shapes]
        self._keys = [
            _zeros(count, block_size * shape.key_dim, dtype, device) for count, shape in zip(rows, shapes, strict=True)
        ]
        self._values = [
            _zeros(count, block_size * shape.value_dim, dtype, device)
            for count, shape in zip(rows, shapes, strict=True)
        ]
        self._shapes = shapes
        self._exactness = exactness(blocks * block_size, shapes, block_size, device)

    @property
    def bytes(self) -> int:
        """Bytes of the KV memory when all of it is resident."""
        return sum(memory.nbytes for memory in (*self._keys, *self._values))

    @torch.inference_mode()
    def forward(self, plan: Listing[Work]) -> Tensor:
        """Computes `plan` and returns the logits, float, of each work that samples, in order: [rows, vocabulary]."""
        grouped = self._grouped(plan)
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last: dict[int, int] = {}  # of each sequence, the row of its last token in the step
        groups: list[Group] = []
        size = self._block_size
        for members in grouped:
            groups.append(self._group(members, len(ids)))
            for work in members:
                sequence, start = work.sequence, work.sequence.computed
                end = start + work.count
                ids += sequence.ids[start:end]
                positions += range(start, end)
                slots += [sequence.blocks[at // size] * size + at % size for at in range(start, end)]
                last[id(sequence)] = len(ids) - 1
        sampled = [last[id(work.sequence)] for work in plan if work.samples]
        step = Step(
            self._keys, self._values, self._shapes, self._tensor(slots), groups, self._stride, self._exactness.rows
        )
        if self._adapters is not None:
            self._adapters.begin([work for members in grouped for work in members])
        # At least one row, since some models do not take an empty choice.
        output = self._model(
            input_ids=self._tensor(ids)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            logits_to_keep=self._tensor(sampled or [0]),
            attend=step.attend,
        )
        logits: Tensor = output.logits[0, : len(sampled)]
        return logits

    @staticmethod
    def _grouped(plan: Listing[Work]) -> list[list[Work]]:
        """Single tokens together, by context, so that one long context does not pad all others to its length; chunks
        of prompts each for themselves."""
        singles: dict[int, list[Work]] = defaultdict(list)
        for work in plan:
            if work.count == 1:
                singles[max(work.sequence.computed, SHORT_CONTEXT - 1).bit_length()].append(work)
        return [*singles.values(), *([work] for work in plan if work.count > 1)]

    def _group(self, members: list[Work], start: int) -> Group:
        size, count = self._block_size, members[0].count
        longest = max(work.sequence.computed for work in members) + count
        pages = self._exactness.padded(longest) // size
        null = [self._stride - 1] * pages
        blocks = [(work.sequence.blocks[:pages] + null)[:pages] for work in members]
        first = [work.sequence.computed for work in members]
        # One key at least is left to be masked, and the kernel of GPUs takes a mask of all.
        clear = min(*first, pages * size - 1) if self._device.type == "cpu" else 0
        return Group(start, self._tensor(blocks), self._tensor(first), count, size, clear)

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self._device)


def _zeros(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, since a masked position still takes part as 0 times its value, which must not be NaN.

    On CPU from numpy, which takes them from the kernel untouched: unlike torch's they become resident when written.
    """
    if device.type != "cpu":
        return torch.zeros(rows, columns, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros((rows, columns * dtype.itemsize), dtype=np.uint8)).view(dtype)


@torch.inference_mode()
def layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
    """What each layer keeps of a token, found by running one through.

    Raises:
        UnsupportedModel: some layers are not causal attention with keys and values of their own.
    """
    found: dict[int, LayerShape] = {}

    def probe(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int) or layer in found or not getattr(module, "is_causal", True):
            raise UnsupportedModel(f"Models of type '{model.config.model_type}' have attention that is not causal.")
        if kwargs.get("position_bias") is not None:
            raise UnsupportedModel(f"Models of type '{model.config.model_type}' have a position bias.")
        found[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    one = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model(input_ids=one, position_ids=one, use_cache=False, attend=probe)
    layers = model.config.get_text_config().num_hidden_layers
    if sorted(found) != list(range(layers)):
        raise UnsupportedModel(
            f"Models of type '{model.config.model_type}' have layers that are not attention, which is not supported."
        )
    return [found[layer] for layer in range(layers)]
