"""The models of a pod: loaded once, evicted when memory is short, refused in a sentence."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import save_file

from services.common.errors import ApiError, DeadlineExceeded, ModelNotFound, UpstreamUnavailable
from services.common.metrics import EngineMetrics
from services.common.settings import InferenceSettings
from services.inference.engine import load
from services.inference.engine.sequence import Sampling
from services.inference.models import Models, Slot

StartModels = Callable[..., Models]


@pytest.fixture
def start_models(tiny_folder: Path) -> Iterator[StartModels]:
    """Makes a catalogue over the tiny Llama under several names; settings by keyword."""
    made = []

    def start(names: tuple[str, ...] = ("first", "second"), source: str = str(tiny_folder), **given: Any) -> Models:
        settings = InferenceSettings(**({"kv_blocks": 16, "device": "cpu"} | given))
        made.append(Models(dict.fromkeys(names, source), settings, EngineMetrics(CollectorRegistry())))
        return made[-1]

    yield start
    for models in made:
        models.close()


@pytest.fixture
def held_loads(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds every load until the event is set."""
    real, go_on = load.load, threading.Event()

    def held(*args: Any, **kwargs: Any) -> Any:
        go_on.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(load, "load", held)
    return go_on


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that are loaded, as they are."""
    real, found = load.load, []

    def counted(source: str, *args: Any, **kwargs: Any) -> Any:
        found.append(source)
        return real(source, *args, **kwargs)

    monkeypatch.setattr(load, "load", counted)
    return found


def soon() -> float:
    return time.monotonic() + 30


def use(models: Models, name: str) -> str:
    with models.use(name, soon()) as engine:
        return engine.name


def states(models: Models) -> dict[str, str]:
    return {name: more["state"] for name, more in models.describe().items()}


def test_the_first_model_is_loaded_at_start_and_then_the_pod_is_ready(start_models: StartModels) -> None:
    models = start_models()
    assert models.status() == ({"status": "loading", "phase": "resolve", "models": ["first", "second"]}, 503)
    models.start()
    assert use(models, "first") == "first"
    assert models.status() == ({"status": "ready", "models": ["first", "second"]}, 200)
    assert states(models) == {"first": "loaded", "second": "not loaded"}


def test_another_model_is_loaded_when_it_is_asked_for(start_models: StartModels) -> None:
    models = start_models()
    assert use(models, "second") == "second"
    assert states(models)["second"] == "loaded"


def test_requests_at_the_same_time_wait_for_one_load(start_models: StartModels, loads: list[str]) -> None:
    models = start_models()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: use(models, "second"), range(8))) == ["second"] * 8
    assert len(loads) == 1


def test_who_waits_for_a_load_gives_up_at_the_deadline_while_it_goes_on(
    start_models: StartModels, held_loads: threading.Event
) -> None:
    models = start_models()
    with pytest.raises(DeadlineExceeded), models.use("first", time.monotonic() + 0.01):
        pass
    assert states(models)["first"] == "loading"
    held_loads.set()
    assert use(models, "first") == "first"


def test_an_unknown_model_is_not_found(start_models: StartModels) -> None:
    with pytest.raises(ModelNotFound):
        use(start_models(), "third")


def test_a_model_that_cannot_be_loaded_is_said_so_and_tried_again_later(
    start_models: StartModels, tmp_path: Path, loads: list[str]
) -> None:
    models = start_models(source=str(tmp_path / "missing"))
    for _ in range(2):
        with pytest.raises(UpstreamUnavailable, match="There is no model file or folder"):
            use(models, "first")
    assert len(loads) == 2
    assert models.status() == (
        {"status": "failed", "reason": f"There is no model file or folder {tmp_path / 'missing'}."},
        503,
    )


def test_the_idle_model_used_longest_ago_is_evicted_for_another(start_models: StartModels) -> None:
    one = start_models()
    use(one, "first")
    size = one._slots["first"].engine.loaded.bytes  # type: ignore[union-attr]

    models = start_models(("a", "b", "c"), model_memory=int(size * 2.9))
    for name in ("a", "b", "a", "c"):
        use(models, name)
    assert states(models) == {"a": "loaded", "b": "not loaded", "c": "loaded"}
    assert use(models, "b") == "b"


def test_a_model_that_is_evicted_leaves_memory_at_once(start_models: StartModels) -> None:
    one = start_models()
    use(one, "first")
    size = one._slots["first"].engine.loaded.bytes  # type: ignore[union-attr]

    models = start_models(("a", "b"), model_memory=int(size * 1.5))
    with models.use("a", soon()) as engine:
        assert gc.get_freeze_count() > 0  # the collector passes over what stays
        engine.loaded.circle = engine.loaded  # type: ignore[attr-defined]  # as the modules of many a model
        loaded = weakref.ref(engine.loaded)
        del engine
    assert loaded() is not None
    use(models, "b")
    assert loaded() is None


def test_a_model_in_use_is_not_evicted(start_models: StartModels) -> None:
    one = start_models()
    use(one, "first")
    size = one._slots["first"].engine.loaded.bytes  # type: ignore[union-attr]

    models = start_models(("a", "b"), model_memory=int(size * 1.5))
    with models.use("a", soon()):
        with pytest.raises(ApiError, match="does not fit into memory"):
            use(models, "b")
        assert states(models)["a"] == "loaded"
    assert use(models, "b") == "b"
    assert states(models)["a"] == "not loaded"


def test_a_pinned_model_is_not_evicted(start_models: StartModels) -> None:
    one = start_models()
    use(one, "first")
    size = one._slots["first"].engine.loaded.bytes  # type: ignore[union-attr]

    models = start_models(("a", "b", "c"), model_memory=int(size * 2.5), pinned="a")
    for name in ("a", "b", "c"):
        use(models, name)
    assert states(models) == {"a": "loaded", "b": "not loaded", "c": "loaded"}


def test_a_client_that_leaves_does_not_wait_for_a_load_that_goes_on(
    start_models: StartModels, held_loads: threading.Event
) -> None:
    @contextmanager
    def leave_at_once(gone: Callable[[], None]) -> Iterator[None]:
        leaving = threading.Thread(target=gone)
        leaving.start()
        yield
        leaving.join()

    models = start_models()
    with pytest.raises(ApiError, match="The client went away"), models.use("first", soon(), leave_at_once):
        pass
    assert states(models)["first"] == "loading"
    held_loads.set()
    assert use(models, "first") == "first"


def test_a_model_that_was_evicted_before_its_waiter_ran_is_loaded_again(
    start_models: StartModels, loads: list[str]
) -> None:
    models = start_models()
    real = models._load

    def load_and_evict_once(name: str, slot: Slot) -> None:
        with models._changed:  # so that nobody gets in between
            real(name, slot)
            if len(loads) == 1:
                assert slot.engine is not None
                slot.engine.close()
                slot.engine = None

    models._load = load_and_evict_once  # type: ignore[method-assign]
    assert use(models, "first") == "first"
    assert len(loads) == 2


@pytest.fixture
def adapter_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny Llama."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}')
    path = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{path}A.weight": torch.ones(1, 32), f"{path}B.weight": torch.ones(32, 1)},
        tmp_path / "adapter_model.safetensors",
    )
    return tmp_path


def test_an_adapter_is_used_with_its_model(start_models: StartModels, adapter_folder: Path) -> None:
    models = start_models(adapters=f"second:law={adapter_folder}")
    assert use(models, "second:law") == "second"
    assert (models.adapter("second:law"), models.adapter("second"), models.adapter("third")) == ("law", None, None)
    assert states(models) == {"first": "not loaded", "second": "loaded", "second:law": "loaded"}
    listed = models.describe()["second:law"]
    assert (listed["parent"], listed["root"]) == ("second", str(adapter_folder))
    use(models, "first")
    assert models.status()[0]["models"] == ["first", "second", "second:law"]
    with pytest.raises(ModelNotFound):
        use(models, "second:tax")


def test_several_ranks_serve_one_model(start_models: StartModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="A pod of several ranks serves one model"):
        start_models(("a", "b"))
    with pytest.raises(ValueError, match="without adapters"):
        start_models(("a",), adapters="a:law=/x")


def test_a_pod_that_drains_is_not_ready(start_models: StartModels) -> None:
    models = start_models()
    use(models, "first")
    models.drain()
    assert models.status()[1] == 503


def test_an_engine_that_hangs_is_the_trouble_of_the_pod(start_models: StartModels) -> None:
    models = start_models(step_timeout=1e-9)
    models.start()
    with models.use("first", soon()) as engine:
        forward, arrived, go_on = engine.loaded.runner.forward, threading.Event(), threading.Event()

        def hang(plan: Any) -> Any:
            arrived.set()
            go_on.wait(30)
            return forward(plan)

        engine.loaded.runner.forward = hang  # type: ignore[method-assign]
        assert models.trouble() is None
        assert models.status()[1] == 200
        engine.submit([1, 2], Sampling(temperature=0), max_tokens=1, deadline=soon())
        assert arrived.wait(30)
        assert models.trouble() == "A step of the model 'first' has not come back for 0 seconds."
        assert models.status() == ({"status": "failed", "reason": models.trouble()}, 503)
        go_on.set()
