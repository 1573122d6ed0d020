"""What the GPU draws, by the energy counter of NVIDIA's management library (NVML), where both are there.

The counter is in millijoules since the driver was loaded, and moves every 20 to 100 ms (Yang et al. 2024, "Part-time
Power Measurements"): the sum over many steps is right, that of a request of few steps is rough. It counts all that the
GPU does; models that compute on one GPU at the same time are each charged for both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch

log = logging.getLogger("forebay.energy")

EnergyCounter = Callable[[], float | None]
"""Joules so far, from an arbitrary zero; None when it could not be read, and then it never will be again."""


def energy_counter(devices: Iterable[torch.device]) -> EnergyCounter | None:
    """The counter of these devices together; None where it cannot be known: no NVIDIA GPU, no NVML, an old GPU."""
    devices = list(devices)
    if not devices or any(device.type != "cuda" for device in devices):
        return None
    try:
        import pynvml  # noqa: PLC0415
    except ImportError:
        log.info("no energy counter: the package nvidia-ml-py is not installed")
        return None

    def read() -> float | None:
        try:
            millijoules = sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles)
        except pynvml.NVMLError as error:
            log.warning("no energy counter", extra={"reason": str(error)})
            return None
        return float(millijoules) / 1000

    try:
        pynvml.nvmlInit()
        # By UUID, since NVML numbers all GPUs of the host and torch only those it may see.
        uuids = [f"GPU-{torch.cuda.get_device_properties(device).uuid}" for device in devices]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    except pynvml.NVMLError as error:
        log.info("no energy counter", extra={"reason": str(error)})
        return None
    return read if read() is not None else None
