"""One forward pass over all tokens of a step, through transformers' own modelling code.

The tokens of all requests go in as one row, `[1, tokens]`, with their positions, and no cache object: keys and values
live in the paged memory here, which only our attention knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Listing
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.inference.engine.attention import Group, LayerShape, Layout, exactness
from services.inference.engine.compile import Backend, compiled, step_sizes
from services.inference.engine.errors import UnsupportedModel
from services.inference.engine.forward import Forward
from services.inference.engine.lora import Adapters
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence
from services.inference.engine.trace import Compute, Inputs, traced

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
        self._adapters = adapters
        self._block_size = block_size
        self._device = model.device
        self._shapes = shapes
        self._exactness = exactness(blocks * block_size, shapes, block_size, model.device)
        self._forward = Forward(model, shapes, blocks=blocks, block_size=block_size, rows=self._exactness.rows)
        self._quick: Compute | None = None
        """The forward pass in a form that is quicker than Python's."""

    @property
    def bytes(self) -> int:
        """Bytes of the KV memory when all of it is resident."""
        return self._forward.nbytes

    @torch.inference_mode()
    def forward(self, plan: Listing[Work]) -> Tensor:
        """Computes `plan` and returns the logits, float, of each work that samples, in order: [rows, vocabulary]."""
        grouped = self._grouped(plan)
        adapted = self._adapters is not None and self._adapters.begin([work for part in grouped for work in part])
        compute = self._forward if self._quick is None or adapted else self._quick
        logits = compute(*self._inputs(plan, grouped))
        return logits[: sum(work.samples for work in plan)]

    def trace(self, context: int) -> None:
        """Has forward passes computed without Python from now on, where that gives the same bits.

        Args:
            context: the longest context, in tokens.
        """
        size = self._block_size
        plans = [
            self._example((20, 1), (0, 3), (9 * size, 1)),
            self._example((3, 7)),
            self._example((0, 1)),
            self._example((1, 1), (5, 1), (3, 1)),
        ]
        examples = [self._inputs(plan, self._grouped(plan)) for plan in plans]
        ids, positions, *rest = examples[2]
        examples.append((ids, positions + context - 1, *rest))  # some models turn positions otherwise far out
        self._quick = traced(self._forward, examples)

    def compile(self, most: int, backend: Backend = "inductor") -> None:
        """Has the layers compiled, and each size of a step computed once, which takes minutes.

        Args:
            most: tokens of a step at most.
        """
        sizes = step_sizes(most)
        self._quick = compiled(self._forward, sizes, backend)
        for size in sizes:
            self.forward(self._example((0, min(size, most, self._exactness.contexts[-1]))))

    def _example(self, *sizes: tuple[int, int]) -> list[Work]:
        """Works on sequences with so many computed tokens and so many pending ones, all in the same block."""
        longest = self._exactness.contexts[-1]
        blocks = [0] * (longest // self._block_size)
        vocabulary = self._forward.model.config.get_text_config().vocab_size
        works = []
        for asked, count in sizes:
            done = min(asked, longest - count)
            ids = [7 * at % vocabulary for at in range(done + count)]
            works.append(Work(Sequence(ids, len(ids), 1, blocks=blocks, computed=done), count))
        return works

    def _inputs(self, plan: Listing[Work], grouped: Listing[Listing[Work]]) -> Inputs:
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last: dict[int, int] = {}  # of each sequence, the row of its last token in the step
        size = self._block_size
        for work in (work for members in grouped for work in members):
            sequence, start = work.sequence, work.sequence.computed
            end = start + work.count
            ids += sequence.ids[start:end]
            positions += range(start, end)
            slots += [sequence.blocks[at // size] * size + at % size for at in range(start, end)]
            last[id(sequence)] = len(ids) - 1
        # At least one, since some models do not take an empty choice.
        sampled = [last[id(work.sequence)] for work in plan if work.samples] or [0]
        groups = [self._group(members) for members in grouped]
        layout = Layout.of(groups, self._tensor(slots), self._shapes, self._forward.stride)
        return self._forward.inputs(self._tensor(ids), self._tensor(positions), self._tensor(sampled), layout)

    @staticmethod
    def _grouped(plan: Listing[Work]) -> list[list[Work]]:
        """Single tokens together, by context, so that one long context does not pad all others to its length; chunks
        of prompts each for themselves."""
        singles: dict[int, list[Work]] = defaultdict(list)
        for work in plan:
            if work.count == 1:
                singles[max(work.sequence.computed, SHORT_CONTEXT - 1).bit_length()].append(work)
        return [*singles.values(), *([work] for work in plan if work.count > 1)]

    def _group(self, members: Listing[Work]) -> Group:
        size, count = self._block_size, members[0].count
        longest = max(work.sequence.computed for work in members) + count
        pages = self._exactness.padded(longest) // size
        null = [self._forward.stride - 1] * pages
        blocks = [(work.sequence.blocks[:pages] + null)[:pages] for work in members]
        first = [work.sequence.computed for work in members]
        # One key at least is left to be masked, and the kernel of GPUs takes a mask of all.
        clear = min(*first, pages * size - 1) if self._device.type == "cpu" else 0
        return Group(self._tensor(blocks), self._tensor(first), count, size, clear)

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self._device)


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
        found[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3], kwargs.get("sliding_window"))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    one = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model(input_ids=one, position_ids=one, use_cache=False, attend=probe)
    layers = model.config.get_text_config().num_hidden_layers
    if sorted(found) != list(range(layers)):
        raise UnsupportedModel(
            f"Models of type '{model.config.model_type}' have layers that are not attention, which is not supported."
        )
    return [found[layer] for layer in range(layers)]
