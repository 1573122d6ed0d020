"""Drawing the next token of every row at once, each row by its own rules.

The draw inverts the cumulative distribution, in order of token id, at one uniform number. That number is a hash of the
request's seed and the token's index, so there is no generator state: a request that was preempted, or is resumed on
another pod, draws the same tokens again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence as Listing
from hashlib import blake2b

import torch

from services.inference.engine.sequence import Sampling

TOP_P_CANDIDATES = 512


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) that decides token `index` of a request with this seed (any 64-bit integer)."""
    digest = blake2b(struct.pack("<Qq", seed & (2**64 - 1), index), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: torch.Tensor, rules: Listing[Sampling], indexes: Listing[int]) -> list[int]:
    """One token id for each row.

    Args:
        logits: [rows, vocabulary], any float type.
        rules: how each row is drawn.
        indexes: each row's number of tokens generated before.
    """
    tokens = logits.argmax(-1)
    drawn = [row for row, rule in enumerate(rules) if rule.temperature > 0]
    if drawn:
        chosen = [rules[row] for row in drawn]
        numbers = [uniform(rules[row].seed, indexes[row]) for row in drawn]
        tokens[drawn] = _draw(logits[drawn].float(), chosen, numbers)
    result: list[int] = tokens.tolist()
    return result


def _draw(logits: torch.Tensor, rules: Listing[Sampling], numbers: Listing[float]) -> torch.Tensor:
    device = logits.device
    logits = logits / torch.tensor([[rule.temperature] for rule in rules], device=device)
    _keep_top_k(logits, [rule.top_k for rule in rules])
    _keep_top_p(logits, [rule.top_p for rule in rules])
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    points = torch.tensor(numbers, device=device, dtype=torch.float64)[:, None] * cumulative[:, -1:]
    # right=True: the first token whose cumulative probability is above the point, so never one of probability zero.
    return torch.searchsorted(cumulative, points, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def _keep_top_k(logits: torch.Tensor, limits: Listing[int]) -> None:
    """Masks, in place, all but the k largest logits of each row; those equal to the k-th stay too."""
    vocabulary = logits.shape[-1]
    rows = [row for row, limit in enumerate(limits) if 0 < limit < vocabulary]
    if not rows:
        return
    ranks = torch.tensor([[limits[row] - 1] for row in rows], device=logits.device)
    largest = logits[rows].topk(max(limits[row] for row in rows)).values
    logits[rows] = logits[rows].masked_fill(logits[rows] < largest.gather(-1, ranks), -torch.inf)


def _keep_top_p(logits: torch.Tensor, masses: Listing[float]) -> None:
    """Masks, in place, all but the likeliest tokens of each row that together reach its probability mass."""
    rows = [row for row, mass in enumerate(masses) if mass < 1]
    if not rows:
        return
    limits = torch.tensor([[masses[row]] for row in rows], device=logits.device)
    probabilities = logits[rows].softmax(-1)
    # Sorting a vocabulary takes milliseconds, and the mass nearly always lies in a few hundred tokens.
    largest = probabilities.topk(min(TOP_P_CANDIDATES, logits.shape[-1])).values
    if (largest.sum(-1, keepdim=True) < limits).any():
        largest = probabilities.sort(-1, descending=True).values
    before = largest.cumsum(-1) - largest
    last = ((before < limits).sum(-1, keepdim=True) - 1).clamp_(min=0)
    logits[rows] = logits[rows].masked_fill(probabilities < largest.gather(-1, last), -torch.inf)
