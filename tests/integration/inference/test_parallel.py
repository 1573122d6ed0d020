"""A pod whose model is split over two processes (tensor parallel), on gloo without a GPU."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integration.inference.pod import ROOT, SPLIT, Pod, running_pod
from tests.ports import free_port
from tests.unit.inference.tiny import save_tiny

PROMPTS = [[3, 14, 15, 92, 65], list(range(40, 75)), [7], [100 + i % 9 for i in range(20)]]
ANSWER = 16
LONG = 480


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture
def split_pod(folder: Path, tmp_path: Path) -> Iterator[Pod]:
    with running_pod(tmp_path, tmp_path, command=SPLIT, model=folder, shutdown_grace=25) as pod:
        yield pod


def body(prompt: list[int], max_tokens: int = ANSWER) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}


@contextmanager
def long_stream(pod: Pod) -> Iterator[http.client.HTTPResponse]:
    """A stream of which something has come, and most is yet to come."""
    with closing(pod.open("/v1/completions", body([7], LONG) | {"stream": True})) as connection:
        response = connection.getresponse()
        assert response.readline()
        yield response


def process_of(pod: Pod, rank: int) -> psutil.Process:
    """The process that computes: of rank 0, gunicorn's worker."""
    child = psutil.Process(pod.process.pid).children()[rank]
    return child.children()[0] if rank == 0 else child


def root_cause(pod: Pod) -> int:
    """The rank whose end torchrun names as the first."""
    found = re.search(r"Root Cause.*?rank +: (\d)", pod.log.read_text(), re.DOTALL)
    assert found is not None, pod.log.read_text()
    return int(found[1])


def test_two_ranks_generate_what_the_whole_model_does(split_pod: Pod, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False, pad_token_id=0
        )
        expected.append(made[0, len(prompt) :].tolist())

    def ids_of(prompt: list[int]) -> list[int]:
        return split_pod.stream("/v1/completions", body(prompt)).ids

    assert [ids_of(prompt) for prompt in PROMPTS] == expected
    with ThreadPoolExecutor(len(PROMPTS)) as together:
        assert list(together.map(ids_of, PROMPTS)) == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_while_nothing_runs_ends_the_pod(split_pod: Pod, rank: int) -> None:
    process_of(split_pod, rank).kill()
    assert split_pod.process.wait(60) != 0
    assert root_cause(split_pod) == rank


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_in_a_step_ends_the_pod_and_cuts_its_streams(split_pod: Pod, rank: int) -> None:
    with long_stream(split_pod) as response:
        process_of(split_pod, rank).kill()
        assert split_pod.process.wait(60) != 0
        assert "a rank is lost or out of step, so the pod ends" in split_pod.log.read_text()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def test_a_pod_that_is_told_to_end_finishes_what_it_has_begun(split_pod: Pod) -> None:
    with long_stream(split_pod) as response:
        split_pod.process.terminate()
        assert response.read().endswith(b"data: [DONE]\n\n")
    split_pod.process.wait(60)
    assert "so the pod ends" not in split_pod.log.read_text()


def test_a_model_that_cannot_be_split_ends_the_pod_with_a_reason(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny", "gpt2")
    environment = os.environ | {
        "TMPDIR": str(tmp_path),
        "FOREBAY_MODEL": str(tmp_path / "tiny"),
        "FOREBAY_INFERENCE_PORT": str(free_port()),
        "FOREBAY_METRICS_PORT": str(free_port()),
    }
    done = subprocess.run(
        [sys.executable, *SPLIT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "transformers cannot load the model" in done.stdout
    assert "has no `tp_plan`" in done.stdout
