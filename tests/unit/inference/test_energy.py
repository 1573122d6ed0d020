"""The GPU's energy counter, on a stand-in for NVML that has the library's names, and on what this machine has."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from services.inference.engine.energy import energy_counter

GPUS = [torch.device("cuda", 0), torch.device("cuda", 1)]


class FakeNvml(ModuleType):
    """Two GPUs, whose counters the test sets; fails in whatever function the test names."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.NVMLError = pynvml.NVMLError
        self.millijoules = {"GPU-a": 1000, "GPU-b": 500}
        self.failing = ""

    def nvmlInit(self) -> None:
        self._maybe_fail("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._maybe_fail("nvmlDeviceGetHandleByUUID")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._maybe_fail("nvmlDeviceGetTotalEnergyConsumption")
        return self.millijoules[handle]

    def _maybe_fail(self, function: str) -> None:
        assert hasattr(pynvml, function)
        if self.failing == function:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab"[torch.device(device).index])
    )
    return fake


def test_the_counter_is_that_of_the_devices_together_in_joules(nvml: FakeNvml) -> None:
    one, both = energy_counter(GPUS[:1]), energy_counter(GPUS)
    assert one is not None
    assert both is not None
    assert (one(), both()) == (1.0, 1.5)
    nvml.millijoules["GPU-b"] += 250
    assert (one(), both()) == (1.0, 1.75)


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_gpu_that_does_not_tell_has_no_counter(nvml: FakeNvml, function: str) -> None:
    nvml.failing = function
    assert energy_counter(GPUS) is None


def test_a_counter_that_fails_later_says_so_and_raises_nothing(nvml: FakeNvml) -> None:
    counter = energy_counter(GPUS)
    assert counter is not None
    nvml.failing = "nvmlDeviceGetTotalEnergyConsumption"
    assert counter() is None


def test_a_cpu_has_no_counter() -> None:
    assert energy_counter([torch.device("cpu")]) is None


@pytest.mark.parametrize("hidden", [False, True])
def test_without_the_driver_or_the_package_there_is_no_counter(monkeypatch: pytest.MonkeyPatch, hidden: bool) -> None:
    def no_driver() -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    if hidden:
        monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_counter(GPUS) is None
