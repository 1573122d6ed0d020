"""Drawing the next token of every row at once, each row by its own rules.

A row's token depends on that row alone, to the bit: nothing is reduced across rows, and what is computed of a row does
not depend on how many others there are (on CPU; a GPU's sums may be split differently for other numbers of rows).

The draw inverts the cumulative distribution, in order of token id, at one uniform number. That number is a hash of the
request's seed and the token's index, so there is no generator state: a request that was preempted, or is resumed on
another pod, draws the same tokens again.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from services.inference.engine.sequence import Sampling, Sequence

BLOCK = 256
"""Tokens that are looked at together: a vocabulary is searched block by block, then within one block."""
BELOW_ONE = 1 - 2**-53


@dataclass(frozen=True, slots=True)
class Draw:
    """A token, and where the request asked for it (`Sampling.logprobs`) its log probability and the likeliest tokens.

    The log probabilities are the model's own: of its raw logits, before bias, penalties, temperature and filters, as
    vLLM's are by default (`logprobs_mode="raw_logprobs"`). OpenAI does not say which its are.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token, log probability), the likeliest first."""


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) that decides token `index` of a request with this seed (any 64-bit integer)."""
    digest = blake2b(struct.pack("<Qq", seed & (2**64 - 1), index), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(logits: Tensor, sequences: Listing[Sequence]) -> list[Draw]:
    """The next token of each sequence.

    Args:
        logits: [sequences, vocabulary], any float type, as the model gave them; left as they are.
    """
    rules = [sequence.sampling for sequence in sequences]
    raw = logits.float()
    changed = [row for row, sequence in enumerate(sequences) if _changes_logits(sequence)]
    scores = raw.clone() if changed else raw
    for row in changed:
        _penalize(scores[row], sequences[row])
    tokens = _likeliest(scores)
    drawn = [row for row, rule in enumerate(rules) if rule.temperature > 0]
    if drawn:
        at = torch.tensor(drawn, device=logits.device)
        numbers = [uniform(rules[row].seed, sequences[row].generated) for row in drawn]
        tokens[at] = _draw(scores.index_select(0, at), [rules[row] for row in drawn], numbers)
    return [
        Draw(token) if rule.logprobs is None else _with_logprobs(token, raw[row], rule.logprobs)
        for row, (token, rule) in enumerate(zip(tokens.tolist(), rules, strict=True))
    ]


def _changes_logits(sequence: Sequence) -> bool:
    rule = sequence.sampling
    penalties = rule.repetition_penalty != 1 or rule.presence_penalty != 0 or rule.frequency_penalty != 0
    return penalties or bool(rule.logit_bias) or sequence.generated < rule.min_tokens


def _penalize(scores: Tensor, sequence: Sequence) -> None:
    """Bias and penalties of one row, in place, in vLLM's order: bias, repetition, frequency and presence; and of an
    answer that is too short yet the tokens that would end it, which become impossible."""
    rule, device = sequence.sampling, scores.device
    if rule.logit_bias:
        tokens, biases = zip(*rule.logit_bias, strict=True)
        scores.index_add_(0, torch.tensor(tokens, device=device), torch.tensor(biases, device=device).float())
    if rule.repetition_penalty != 1:
        seen = torch.tensor(sequence.ids, device=device)
        before = scores[seen]
        penalty = rule.repetition_penalty
        scores[seen] = torch.where(before < 0, before * penalty, before / penalty)
    if (rule.presence_penalty or rule.frequency_penalty) and sequence.generated:
        counts = Counter(sequence.ids[sequence.prompt_length :])
        penalties = [rule.presence_penalty + rule.frequency_penalty * count for count in counts.values()]
        scores[torch.tensor(list(counts), device=device)] -= torch.tensor(penalties, device=device)
    if rule.ends and sequence.generated < rule.min_tokens:
        scores[torch.tensor(sorted(rule.ends), device=device)] = -torch.inf


def _likeliest(scores: Tensor) -> Tensor:
    """The first largest of each row. By blocks, since torch's `argmax` takes ten times as long as its `amax`."""
    blocks = _blocks(scores, -torch.inf)
    block = blocks.amax(-1).argmax(-1)
    return block * BLOCK + _pick(blocks, block).argmax(-1)


def _draw(scores: Tensor, rules: Listing[Sampling], numbers: Listing[float]) -> Tensor:
    """Tokens drawn from rows that all have a temperature. Overwrites the scores."""
    # Relative to the largest, so that no temperature, however low, makes a weight infinite. The largest weight is 1.
    scores.sub_(scores.amax(-1, keepdim=True)).div_(_column([rule.temperature for rule in rules], scores).float())
    weights = scores.exp_()
    _filter(weights, rules)
    return _locate(weights, _column(numbers, weights))


def _filter(weights: Tensor, rules: Listing[Sampling]) -> None:
    """Sets to zero what top-k, top-p and min-p leave out; in transformers' order, each of what is left.

    Every one of them keeps the weights from some size on, so that those equal to the smallest kept stay too.
    """
    vocabulary = weights.shape[-1]
    ranked = [row for row, rule in enumerate(rules) if 0 < rule.top_k < vocabulary or rule.top_p < 1]
    if not ranked and not any(rule.min_p for rule in rules):
        return
    floors = _column([rule.min_p for rule in rules], weights).float()
    if ranked:
        ascending = _sorted(weights.index_select(0, torch.tensor(ranked, device=weights.device)))
        places = [[vocabulary - min(rules[row].top_k or vocabulary, vocabulary)] for row in ranked]
        if any(place > 0 for (place,) in places):
            _keep_from(ascending, ascending.gather(-1, torch.tensor(places, device=weights.device)))
        # From the smallest up, as transformers does: what top-p leaves out are the last 1 - top_p.
        cut = _locate(ascending, _column([1 - rules[row].top_p for row in ranked], weights))
        floors[ranked] = torch.maximum(floors[ranked], ascending.gather(-1, cut[:, None]))
    _keep_from(weights, floors)


def _sorted(weights: Tensor) -> Tensor:
    """The rows in ascending order. On CPU in place and by numpy, which takes a thirtieth of the time of torch."""
    if weights.device.type == "cpu":
        weights.numpy().sort(-1)
        return weights
    return weights.sort(-1).values


def _keep_from(weights: Tensor, floors: Tensor) -> None:
    """Sets to zero what is below its row's floor. In floats, since torch is slow with booleans."""
    weights.mul_(weights.clone().ge_(floors))


def _locate(weights: Tensor, numbers: Tensor) -> Tensor:
    """The index at which each row's cumulative weights pass its number in [0, 1) times their sum.

    By blocks, the sums of the blocks first, since a cumulative sum in double precision is slow. Never a weight of zero.
    """
    blocks = _blocks(weights, 0)
    block, part = _pass(blocks.sum(-1), numbers)
    within, _ = _pass(_pick(blocks, block), part)
    return (block * BLOCK + within).clamp_(max=weights.shape[-1] - 1)


def _pass(weights: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """As `_locate`, without blocks; also tells which part of the weight there was before the number was passed."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    points = numbers * cumulative[:, -1:]
    # right=True: the first sum above the point, and no weight of zero makes a sum larger than the one before. Beyond
    # the last is only a row that is not of numbers; it must not cost its neighbours the step.
    found = torch.searchsorted(cumulative, points, right=True).clamp_(max=weights.shape[-1] - 1)
    after = cumulative.gather(-1, found)
    before = torch.where(found > 0, cumulative.gather(-1, (found - 1).clamp_(min=0)), 0.0)
    return found.squeeze(-1), ((points - before) / (after - before)).clamp_(max=BELOW_ONE)


def _blocks(rows: Tensor, fill: float) -> Tensor:
    """[rows, vocabulary] as [rows, blocks, BLOCK], filled up at the end."""
    missing = -rows.shape[-1] % BLOCK
    whole = torch.nn.functional.pad(rows, (0, missing), value=fill) if missing else rows
    return whole.view(len(rows), -1, BLOCK)


def _pick(blocks: Tensor, block: Tensor) -> Tensor:
    """[rows, BLOCK]: of each row the block that is named."""
    return blocks[torch.arange(len(blocks), device=blocks.device), block]


def _column(values: Listing[float], beside: Tensor) -> Tensor:
    """[rows, 1] in double precision, where the rows are."""
    return torch.tensor(values, device=beside.device, dtype=torch.float64)[:, None]


def _with_logprobs(token: int, logits: Tensor, count: int) -> Draw:
    logprobs = logits.log_softmax(-1)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return Draw(token, logprobs[token].item(), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
