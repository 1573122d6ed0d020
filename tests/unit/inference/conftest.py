"""Tiny models with random weights, so that the engine runs for real, in milliseconds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry

from services.common.metrics import EngineMetrics
from services.common.settings import InferenceSettings
from services.inference.app import create_app
from services.inference.engine import machine
from services.inference.engine.energy import EnergyCounter
from services.inference.engine.engine import Engine
from services.inference.engine.load import load
from tests.conftest import own_application
from tests.unit.inference.answering import MODEL
from tests.unit.inference.tiny import save_tiny

# Tiny models gain nothing from threads, and beside other work on the machine lose much by them.
torch.set_num_threads(1)
numbers = itertools.count()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny-llama", "llama")


@pytest.fixture
def registry() -> CollectorRegistry:
    """Where the engines of a test count."""
    return CollectorRegistry()


@pytest.fixture
def start_engine(tiny_folder: Path, registry: CollectorRegistry) -> Iterator[Callable[..., Engine]]:
    """Starts an engine over the tiny Llama; settings by keyword. Its name is its own, since counts go by names."""
    engines = []
    metrics = EngineMetrics(registry)

    def start(folder: Path = tiny_folder, *, energy: EnergyCounter | None = None, **given: int) -> Engine:
        settings = InferenceSettings(model=str(folder), **({"kv_blocks": 64, "device": "cpu"} | given))
        engine = Engine(
            f"tiny-{next(numbers)}",
            load(str(folder), settings),
            metrics,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            step_tokens=settings.step_tokens,
            chunk_tokens=settings.chunk_tokens,
            prefix_cache=settings.prefix_cache,
            energy=energy,
        )
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def write_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes the files of a container's limits, by name with an underscore for the dot."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / name.replace("_", ".", 1)).write_text(text)

    return write


@pytest.fixture(scope="module")
def client(tiny_folder: Path) -> Iterator[FlaskClient]:
    """A pod that serves the tiny Llama, without a server."""
    with own_application():
        app = create_app(InferenceSettings(model=str(tiny_folder), kv_blocks=64, device="cpu"))
        models = app.extensions["forebay.models"]
        with models.use(MODEL, float("inf")) as engine:
            engine.loaded.eos_ids = frozenset()  # random weights end at random; here answers end at their limit
        yield app.test_client()
        models.close()
