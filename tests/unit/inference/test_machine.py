"""What the container leaves of the machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from services.inference.engine import machine

CPU = torch.device("cpu")
WriteLimits = Callable[..., None]


def test_free_memory_is_what_the_container_leaves(write_limits: WriteLimits) -> None:
    write_limits(memory_max="1000000\n", memory_current="600000\n", memory_stat="anon 100000\ninactive_file 500000\n")
    assert machine.free_memory(CPU) == 900_000


def test_a_container_without_a_limit_has_the_machines_memory(write_limits: WriteLimits) -> None:
    write_limits(memory_max="max\n")
    assert machine.free_memory(CPU) > 1_000_000


@pytest.mark.parametrize(("quota", "threads"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 8)])
def test_torch_has_no_more_threads_than_the_container_has_cores(
    write_limits: WriteLimits, monkeypatch: pytest.MonkeyPatch, quota: str, threads: int
) -> None:
    chosen = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    write_limits(cpu_max=quota)
    machine.use_own_cores()
    assert chosen[-1] == threads
