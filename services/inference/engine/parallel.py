"""Tensor parallel: one model over all ranks of a pod, which run the same forward passes in lockstep.

transformers splits the weights, heads and columns, and adds up between the ranks inside the forward (Shoeybi et al.
2019, "Megatron-LM"). What is left is that every rank runs the same forwards in the same order: rank 0 sends each step's
plan before it computes it, the others wait for plans. Each rank keeps the keys and values of its own heads.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence as Listing
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig
from transformers.distributed.configuration_utils import DistributedConfig

from services.inference.engine.errors import UnsupportedModel
from services.inference.engine.ranks import rank, ranks
from services.inference.engine.run import Runner
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence

log = logging.getLogger("forebay.parallel")

PATIENCE = timedelta(days=365)
"""How long a rank waits for a plan: an idle pod sends none for days, and when rank 0 dies its connection breaks, which
ends the wait at once."""


def devices(own: torch.device) -> list[torch.device]:
    """The devices of all ranks, of which one is this rank's."""
    return [own] if ranks() == 1 else [torch.device(own.type, index) for index in range(ranks())]


def placement(folder: Path, device: torch.device) -> dict[str, Any]:
    """What tells transformers where the weights go: all to the device, or to each rank its part.

    Raises:
        UnsupportedModel: the model has not as many heads as can be dealt out evenly.
    """
    if ranks() == 1:
        return {"device_map": str(device)}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    if heads % ranks() or kept % ranks():
        raise UnsupportedModel(
            f"The model cannot be split over {ranks()} ranks: it has {heads} attention heads with {kept} pairs of keys "
            "and values, and every rank takes equally many of both."
        )
    return {"distributed_config": DistributedConfig(tp_plan="auto")}


class Leader:
    """Rank 0's runner: has the other ranks compute each step with it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def bytes(self) -> int:
        """Bytes of this rank's KV memory when all of it is resident."""
        return self._runner.bytes

    def forward(self, plan: Listing[Work]) -> Tensor:
        """As `Runner.forward`. Ends the process when it fails: ranks that are out of step cannot be brought back, and
        a connection that breaks tells the gateway more than an error would, namely to go on elsewhere."""
        try:
            _broadcast([_shortened(work) for work in plan])
            return self._runner.forward(plan)
        except Exception as error:
            log.critical("a rank is lost or out of step, so the pod ends", exc_info=True, extra={"reason": str(error)})
            os._exit(1)


def lead(runner: Runner) -> Runner | Leader:
    """The runner as this rank's steps go through it: a `Leader` on rank 0 of several, else as it is."""
    return Leader(runner) if rank() == 0 and ranks() > 1 else runner


def follow(runner: Runner | Leader) -> NoReturn:
    """Computes the steps of rank 0 for as long as it lives.

    Raises:
        RuntimeError: rank 0 or another rank is gone.
    """
    while True:
        runner.forward([_work(*shortened) for shortened in _broadcast(None)])


def least(value: int) -> int:
    """The smallest of the ranks' values. All ranks must ask at the same point."""
    if ranks() == 1:
        return value
    smallest = torch.tensor(value)
    dist.all_reduce(smallest, dist.ReduceOp.MIN, group=_control())
    return int(smallest)


def local(weight: Tensor) -> Tensor:
    """The part of a weight that this rank holds."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


@functools.cache
def _control() -> Any:
    """The group of all ranks for small messages, which go by way of the CPU whatever the device is."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def _broadcast(message: Any) -> Any:
    """What rank 0 passes, on all ranks."""
    box = [message]
    dist.broadcast_object_list(box, src=0, group=_control())
    return box[0]


def _shortened(work: Work) -> tuple[Any, ...]:
    """What another rank must know of a sequence: the tokens of the step, not the thousands before them."""
    sequence, start = work.sequence, work.sequence.computed
    return start, sequence.ids[start : start + work.count], sequence.pending, sequence.blocks


def _work(computed: int, ids: list[int], pending: int, blocks: list[int]) -> Work:
    """The work again. Tokens outside the step are zeros, as nothing reads them."""
    count = len(ids)
    known = [0] * computed + ids + [0] * (pending - count)
    return Work(Sequence(known, len(known), 1, blocks=blocks, computed=computed), count)
