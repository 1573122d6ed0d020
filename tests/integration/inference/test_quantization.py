"""The bundled model with quantised weights: it still knows what it knew, and the pod says how it computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.inference.conftest import HOME, MODEL, chat
from tests.integration.inference.pod import running_pod


@pytest.mark.parametrize(
    ("quantization", "kernels"),
    [
        ("int8", {"fbgemm-int8", "onednn-int8"}),
        ("nf4", {"bitsandbytes-nf4, fbgemm-int8", "bitsandbytes-nf4, onednn-int8"}),
    ],
)
def test_a_quantised_pod_answers_and_says_which_kernel_it_has(
    model_folder: Path, tmp_path: Path, quantization: str, kernels: set[str]
) -> None:
    with running_pod(tmp_path, HOME, quantization=quantization, kv_blocks=64) as pod:
        answer = pod.post("/v1/chat/completions", chat("What is the capital of France?", max_tokens=24))
        assert "Paris" in answer.text
        described = pod.get(f"/v1/models/{MODEL}").body
        assert described["quantization"] == quantization
        assert described["kernel"] in kernels
        assert f'"kernel": "{described["kernel"]}"' in pod.await_log('"model ready"')
