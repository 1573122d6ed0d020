"""Attention over paged KV memory, in the place of transformers' own.

The tokens of all requests of a step stand in one row. Everything in a decoder but attention treats tokens one by one,
so only attention must know which belong together. transformers lets it be replaced by name (`ALL_ATTENTION_FUNCTIONS`)
and hands keyword arguments of the forward through to it: ours arrives as `attend`. No mask function is registered under
our name, so transformers builds no mask.

Memory layout, by measurement on CPU: the keys of one layer are `[heads * blocks, size * dim]`, so one `index_select`
copies whole blocks and its result, seen as `[sequences * heads, context, dim]`, is what a batched product wants.

A query's result must not depend on its neighbours, nor on whether it came alone or in a chunk of a prompt. So all go
the same way, and `Exactness` keeps to shapes for which the products of this machine give the same bits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
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
    window: int | None = None
    """How many tokens back a token sees, its own included; None: all of them."""


@dataclass(frozen=True)
class Exactness:
    """Shapes within which a row of a product has the same bits, whatever the rows beside it and the zeros after it.

    rows: the fewest rows that a product needs for that. contexts: lengths, in tokens, that a context may be padded to;
    the matrix kernels split other lengths in other places, and then add up in another order.
    """

    rows: int
    contexts: tuple[int, ...]

    def padded(self, tokens: int) -> int:
        """The shortest allowed context that holds so many tokens."""
        return self.contexts[bisect_left(self.contexts, tokens)]


def exactness(longest: int, shapes: Iterable[LayerShape], block_size: int, device: torch.device) -> Exactness:
    """Finds by trying what holds on this machine. On a GPU nothing is promised, and all lengths will do.

    Args:
        longest: tokens of the longest context.
    """
    lengths = [block_size]
    while lengths[-1] < longest:
        power = 1 << (lengths[-1] // block_size).bit_length()
        half = power * 3 // 4 * block_size
        lengths.append(half if half > lengths[-1] else power * block_size)  # 16, 32, 48, 64, 96, 128, …
    if device.type != "cpu":
        return Exactness(1, tuple(lengths))
    found = [_try(lengths, *dims) for dims in sorted({(shape.key_dim, shape.value_dim) for shape in shapes})]
    allowed = set(lengths).intersection(*(one.contexts for one in found))
    return Exactness(max(one.rows for one in found), tuple(sorted(allowed)))


def _try(lengths: Listing[int], key_dim: int, value_dim: int) -> Exactness:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 32, key_dim, generator=generator)
    keys = torch.randn(2, key_dim, lengths[-1], generator=generator)
    weights = torch.rand(2, 32, lengths[-1], generator=generator)
    values = torch.randn(2, lengths[-1], value_dim, generator=generator)
    shortest = lengths[0]
    products = [
        (queries, keys),
        (queries, keys[:, :, :shortest]),
        (weights, values),
        (weights[:, :, :shortest], values[:, :shortest]),
    ]
    wholes = [torch.bmm(left, right) for left, right in products]

    def enough(rows: int) -> bool:
        parts = [torch.bmm(left[:, :rows].contiguous(), right) for left, right in products]
        return all(torch.equal(part, whole[:, :rows]) for part, whole in zip(parts, wholes, strict=True))

    def indifferent(length: int) -> bool:
        short = weights[:, :4, :length].contiguous()
        padded = functional.pad(short, (0, lengths[-1] - length))
        return torch.equal(torch.bmm(short, values[:, :length]), torch.bmm(padded, values))

    rows = next((rows for rows in (1, 2, 4, 8, 16) if all(enough(more) for more in range(rows, 17))), 1)
    return Exactness(rows, tuple(length for length in lengths if indifferent(length)))


@dataclass(frozen=True)
class Group:
    """Sequences that one attention call computes: all with `queries` tokens in the step and one length of context.

    blocks: [sequences, pages], padded with the null block. first: position of each sequence's first token in the step,
    [sequences]. clear: keys, from the first on, that every query may see, unless there is a window.
    """

    blocks: Tensor
    first: Tensor
    queries: int
    block_size: int
    clear: int

    def hidden(self, window: int | None) -> Tensor:
        """What each query may not see, [sequences, queries, keys], true where hidden: the future, the padding, and what
        lies `window` or more tokens back. Of the last keys only, where all before them are clear."""
        clear = self.clear if window is None else 0
        keys = torch.arange(clear, self.blocks.shape[1] * self.block_size, device=self.first.device)
        positions = (self.first[:, None] + torch.arange(self.queries, device=self.first.device))[:, :, None]
        hidden = keys > positions
        if window is not None:
            hidden |= keys <= positions - window
        return hidden

    def pages(self, heads: int, stride: int) -> Tensor:
        """The blocks of all sequences and heads, flat, where each head has `stride` blocks."""
        offsets = torch.arange(heads, device=self.first.device) * stride
        return (self.blocks[:, None, :] + offsets[:, None]).flatten()


@dataclass(frozen=True)
class Layout:
    """Which tokens of a step belong together, and where their contexts lie.

    slots: where each token's key and value go, [tokens]. sizes: sequences, queries, pages and clear keys of each group,
    whose tokens follow one another, [groups, 4], on the CPU. pages: those of all groups, flat, by the number of heads.
    hidden: the masks of all groups, flat, by window.
    """

    slots: Tensor
    sizes: Tensor
    pages: dict[int, Tensor]
    hidden: dict[int | None, Tensor]

    @classmethod
    def of(cls, groups: Listing[Group], slots: Tensor, shapes: Listing[LayerShape], stride: int) -> Layout:
        """The layout of these groups, for layers of these shapes, where each head has `stride` blocks."""
        sizes = [[len(group.first), group.queries, group.blocks.shape[1], group.clear] for group in groups]
        heads = sorted({shape.heads for shape in shapes})
        windows = dict.fromkeys(shape.window for shape in shapes)
        return cls(
            slots,
            torch.tensor(sizes),
            {count: torch.cat([group.pages(count, stride) for group in groups]) for count in heads},
            {window: torch.cat([group.hidden(window).flatten() for group in groups]) for window in windows},
        )


@dataclass(frozen=True)
class Step:
    """The attention of one step, called by every layer of the model."""

    keys: Listing[Tensor]
    values: Listing[Tensor]
    shapes: Listing[LayerShape]
    layout: Layout
    stride: int
    rows: int
    """The fewest rows of a product that is exact."""
    compute: Callable[..., Tensor]
    """`attend_groups`, or what TorchScript made of it."""
    _slots: dict[int, Tensor] = field(default_factory=dict)

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Stores keys and values of the step's tokens, and attends each token to its own sequence.

        Args:
            query: [1, query heads, tokens, key dim]; key and value: [1, heads, tokens, dim].
            scaling, softcap, s_aux: as transformers' attention functions have them; s_aux is one attention sink per
                query head (OpenAI's gpt-oss).

        Returns:
            [1, tokens, query heads, value dim].
        """
        layer: int = module.layer_idx  # type: ignore[assignment]
        shape, layout = self.shapes[layer], self.layout
        keys, values = self.keys[layer], self.values[layer]
        slots = self._slots_of(shape.heads, keys.shape[1] // shape.key_dim)
        keys.view(-1, shape.key_dim).index_copy_(0, slots, key[0].transpose(0, 1).reshape(-1, shape.key_dim))
        values.view(-1, shape.value_dim).index_copy_(0, slots, value[0].transpose(0, 1).reshape(-1, shape.value_dim))
        return self.compute(
            query[0].transpose(0, 1),
            keys,
            values,
            sizes=layout.sizes,
            pages=layout.pages[shape.heads],
            hidden=layout.hidden[shape.window],
            heads=shape.heads,
            value_dim=shape.value_dim,
            windowed=shape.window is not None,
            scale=scaling if scaling is not None else shape.key_dim**-0.5,
            rows=self.rows,
            softcap=softcap,
            sinks=s_aux,
        )[None]

    def _slots_of(self, heads: int, block_size: int) -> Tensor:
        if heads not in self._slots:
            offsets = torch.arange(heads, device=self.layout.slots.device) * self.stride * block_size
            self._slots[heads] = (self.layout.slots[:, None] + offsets).flatten()
        return self._slots[heads]


# From here on TorchScript reads along (`trace.py`), so it stays within its part of Python: sizes by index, lists typed.


def attend_groups(  # noqa: PLR0917 - TorchScript wants no keyword-only ones
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    sizes: Tensor,
    pages: Tensor,
    hidden: Tensor,
    heads: int,
    value_dim: int,
    windowed: bool,
    scale: float,
    rows: int,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attends the tokens of each group of a step to their contexts.

    Args:
        queries: [tokens, query heads, key dim].
        keys, values: a layer's memory, [heads * blocks, block size * dim].
        sizes, pages, hidden: see `Layout`.
        rows: the fewest rows of an exact product.

    Returns:
        [tokens, query heads, value dim].
    """
    key_dim = queries.size(2)
    block_size = keys.size(1) // key_dim
    fused = queries.device.type != "cpu" and softcap is None and sinks is None
    results: list[Tensor] = []
    token, page, bit = 0, 0, 0
    groups: list[list[int]] = sizes.tolist()
    for group in groups:
        sequences, count, length = group[0], group[1], group[2] * block_size
        masked = length if windowed else length - group[3]
        found = pages.narrow(0, page, sequences * heads * group[2])
        context_keys = keys.index_select(0, found).view(sequences * heads, length, key_dim)
        context_values = values.index_select(0, found).view(sequences * heads, length, value_dim)
        asked = queries.narrow(0, token, sequences * count).view(sequences, count, heads, -1, key_dim)
        mask = hidden.narrow(0, bit, sequences * count * masked).view(sequences, count, masked)
        if fused:
            results.append(_fused(asked, context_keys, context_values, mask, scale))
        else:
            dense = _dense(
                asked, context_keys, context_values, mask, scale=scale, rows=rows, softcap=softcap, sinks=sinks
            )
            results.append(dense)
        token += sequences * count
        page += sequences * heads * group[2]
        bit += sequences * count * masked
    return results[0] if len(results) == 1 else torch.cat(results)


def _fused(queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """Attention by torch's fused kernel, which never holds all scores; for GPUs.

    Args:
        queries: [sequences, queries, heads, members, dim], where the members of a head share its keys.
        keys, values: [sequences * heads, context, dim].
        hidden: [sequences, queries, context].

    Returns:
        [sequences * queries, query heads, value dim].
    """
    sequences, heads, members = queries.size(0), queries.size(2), queries.size(3)
    result = functional.scaled_dot_product_attention(
        queries.flatten(2, 3).transpose(1, 2),
        keys.view(sequences, heads, -1, keys.size(2)),
        values.view(sequences, heads, -1, values.size(2)),
        attn_mask=~hidden[:, None],
        scale=scale,
        enable_gqa=members != 1,
    )
    return result.transpose(1, 2).flatten(0, 1)


def _dense(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    hidden: Tensor,
    *,
    scale: float,
    rows: int,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same, step by step, with at least `rows` rows in each product. `hidden` may be of the last keys only."""
    sequences, count, heads, members, dim = (
        queries.size(0),
        queries.size(1),
        queries.size(2),
        queries.size(3),
        queries.size(4),
    )
    filled = max(members, (rows + count - 1) // count)
    # The members of a head are rows of one product, and so are a sequence's queries. What fills up is never looked at.
    grouped = queries.new_empty([sequences, heads, count, filled, dim])
    torch.mul(queries.transpose(1, 2), scale, out=grouped[:, :, :, :members])
    scores = torch.bmm(grouped.view(sequences * heads, count * filled, dim), keys.transpose(1, 2))
    scores = scores.view(sequences, heads, count, filled, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores[..., scores.size(4) - hidden.size(2) :].masked_fill_(hidden[:, None, :, None], -torch.inf)
    if sinks is not None:
        sink = functional.pad(sinks.to(scores.dtype).view(heads, 1, members, 1), [0, 0, 0, filled - members])
        scores = torch.cat([scores, sink.expand(sequences, heads, count, filled, 1)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    result = torch.bmm(weights.reshape(sequences * heads, count * filled, -1), values)
    result = result.view(sequences, heads, count, filled, -1)[:, :, :, :members].transpose(1, 2)
    return result.reshape(sequences * count, heads * members, -1)
