"""Running out of memory in the middle of a step: how it shows, and what can be given back at once."""

from __future__ import annotations

import gc

import torch

MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""How torch says it where it has no type for it."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether a step failed for want of memory, so that it may succeed when there is less to compute."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def release_unused() -> None:
    """Gives back what nothing refers to any more: cycles of Python objects, and the GPU memory that torch keeps."""
    gc.collect()
    torch.cuda.empty_cache()
