"""The bundled model as transformers runs it, and pods that serve it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: threads that spin would take the cores from the pods under test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import HOME
from tests.integration.inference.pod import Pod, running_pod
from tests.unit.inference.tiny import save_tiny

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def reference_model(model_folder: Path) -> Any:
    """The bundled model as transformers runs it."""
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def second_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3 with the tokenizer of the first model."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-qwen3", "qwen3", tokenizer=tokenizer)


@pytest.fixture(scope="session")
def pod(model_folder: Path, second_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A pod as it comes, with a second model that is loaded on demand."""
    with running_pod(tmp_path_factory.mktemp("pod"), HOME, model=f"bundled,second={second_folder}") as running:
        yield running


@pytest.fixture(scope="session")
def narrow_pod(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A pod in which one request runs and one waits, with a short context."""
    with running_pod(tmp_path_factory.mktemp("narrow"), HOME, max_batch=1, max_queue=1, context_length=1024) as running:
        yield running


def chat(text: str, **more: Any) -> dict[str, Any]:
    """The body of a chat request for the bundled model."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0} | more


def completion(prompt: Any, **more: Any) -> dict[str, Any]:
    """The body of a completion request for the bundled model."""
    return {"model": MODEL, "prompt": prompt, "temperature": 0} | more
