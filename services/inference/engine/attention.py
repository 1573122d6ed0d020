"""Attention over paged KV memory, in the place of transformers' own.

The tokens of all requests of a step stand in one row. Everything in a decoder but attention treats tokens one by one,
so only attention must know which belong together. transformers lets it be replaced by name (`ALL_ATTENTION_FUNCTIONS`)
and hands keyword arguments of the forward through to it: ours arrives as `attend`. No mask function is registered under
our name, so transformers builds no mask.

Memory layout, by measurement on CPU: the keys of one layer are `[heads * blocks, size * dim]`, so one `index_select`
copies whole blocks and its result, seen as `[heads, sequences, context, dim]`, is what a batched product wants.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "forebay_paged"

Attend = Callable[..., Tensor]


def _attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any) -> Any:
    attend: Attend = kwargs.pop("attend")
    return attend(module, query, key, value, **kwargs), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)


@dataclass(frozen=True)
class LayerShape:
    """What one token leaves in one layer's KV memory."""

    heads: int
    key_dim: int
    value_dim: int


@dataclass
class Group:
    """Sequences that one attention call computes: all with `queries` tokens in the step and `pages` blocks of context.

    rows: where their tokens stand in the packed row, [sequences * queries]. blocks: [sequences, pages], padded with the
    null block. first: position of each sequence's first token in the step, [sequences].
    """

    rows: Tensor
    blocks: Tensor
    first: Tensor
    queries: int
    block_size: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict)
    _pages: dict[int, Tensor] = field(default_factory=dict)

    def hidden(self, window: int | None) -> Tensor:
        """What each query may not see, [sequences, queries, context], true where hidden: the future, the padding, and
        what lies `window` or more tokens back."""
        if window not in self._masks:
            keys = torch.arange(self.blocks.shape[1] * self.block_size, device=self.rows.device)
            positions = (self.first[:, None] + torch.arange(self.queries, device=self.rows.device))[:, :, None]
            hidden = keys > positions
            if window is not None:
                hidden |= keys <= positions - window
            self._masks[window] = hidden
        return self._masks[window]

    def pages(self, heads: int, stride: int) -> Tensor:
        """The blocks of all heads, flat, where each head has `stride` blocks: [heads * sequences * pages]."""
        if heads not in self._pages:
            offsets = torch.arange(heads, device=self.rows.device) * stride
            self._pages[heads] = (offsets[:, None] + self.blocks.flatten()).flatten()
        return self._pages[heads]


@dataclass
class Step:
    """The attention of one step, called by every layer of the model."""

    keys: list[Tensor]
    values: list[Tensor]
    shapes: Listing[LayerShape]
    slots: Tensor
    groups: list[Group]
    stride: int
    _slots: dict[int, Tensor] = field(default_factory=dict)

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Stores keys and values of the step's tokens, and attends each token to its own sequence.

        Args:
            query: [1, query heads, tokens, key dim]; key and value: [1, heads, tokens, dim].
            scaling, sliding_window, softcap, s_aux: as transformers' attention functions have them; s_aux is one
                attention sink per query head (OpenAI's gpt-oss).

        Returns:
            [1, tokens, query heads, value dim].
        """
        layer: int = module.layer_idx  # type: ignore[assignment]
        shape = self.shapes[layer]
        keys, values = self.keys[layer], self.values[layer]
        slots = self._slots_of(shape.heads, keys.shape[1] // shape.key_dim)
        keys.view(-1, shape.key_dim).index_copy_(0, slots, key.reshape(-1, shape.key_dim))
        values.view(-1, shape.value_dim).index_copy_(0, slots, value.reshape(-1, shape.value_dim))

        scale = scaling if scaling is not None else shape.key_dim**-0.5
        output = query.new_empty(query.shape[2], query.shape[1], shape.value_dim)
        for group in self.groups:
            pages = group.pages(shape.heads, self.stride)
            context_keys = keys.index_select(0, pages).view(shape.heads, len(group.first), -1, shape.key_dim)
            context_values = values.index_select(0, pages).view(shape.heads, len(group.first), -1, shape.value_dim)
            queries = query[0].index_select(1, group.rows)
            hidden = group.hidden(sliding_window)
            plain = softcap is None and s_aux is None
            if group.queries > 1 and plain:
                result = _fused(queries, context_keys, context_values, hidden, scale)
            else:
                result = _dense(queries, context_keys, context_values, hidden, scale, softcap=softcap, sinks=s_aux)
            output.index_copy_(0, group.rows, result)
        return output[None]

    def _slots_of(self, heads: int, block_size: int) -> Tensor:
        if heads not in self._slots:
            offsets = torch.arange(heads, device=self.slots.device) * self.stride * block_size
            self._slots[heads] = (offsets[:, None] + self.slots).flatten()
        return self._slots[heads]


def _fused(queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """Attention of many queries: torch's fused kernel, which never holds all scores.

    Args:
        queries: [query heads, sequences * queries, dim].
        keys, values: [heads, sequences, context, dim].
        hidden: [sequences, queries, context].

    Returns:
        [sequences * queries, query heads, value dim].
    """
    sequences, count, _ = hidden.shape
    by_sequence = queries.view(queries.shape[0], sequences, count, -1).transpose(0, 1)
    result = functional.scaled_dot_product_attention(
        by_sequence,
        keys.transpose(0, 1),
        values.transpose(0, 1),
        attn_mask=~hidden[:, None],
        scale=scale,
        enable_gqa=queries.shape[0] != keys.shape[0],
    )
    return result.transpose(1, 2).flatten(0, 1)


def _dense(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    hidden: Tensor,
    scale: float,
    *,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same, step by step. Faster than the fused kernel for one query a sequence, where scores are few."""
    heads, sequences, context, dim = keys.shape
    count, members = hidden.shape[1], queries.shape[0] // heads
    # [heads * sequences, members * queries, …]: the members of a head share its keys, so they are rows of one product.
    grouped = queries.view(heads, members, sequences, count, dim).transpose(1, 2).reshape(heads * sequences, -1, dim)
    scores = torch.bmm(grouped, keys.view(heads * sequences, context, dim).transpose(1, 2))
    scores = scores.view(heads, sequences, members, count, context).mul_(scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill_(hidden[:, None], -torch.inf)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(heads, 1, members, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sink], -1).softmax(-1, dtype=torch.float32)[..., :-1]
    else:
        weights = scores.softmax(-1, dtype=torch.float32)
    weights = weights.to(values.dtype).view(heads * sequences, -1, context)
    result = torch.bmm(weights, values.view(heads * sequences, context, -1))
    result = result.view(heads, sequences, members, count, -1).permute(1, 3, 0, 2, 4)
    return result.reshape(sequences * count, heads * members, -1)
