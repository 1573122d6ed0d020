"""The baseline: transformers' `generate`, one request at a time, as the deployment guide serves it.

Prints the samples as JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forebay.bench import Sample, prompt


class Stamps:
    """A streamer that notes when each token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _value: torch.Tensor) -> None:
        self.times.append(time.monotonic())

    def end(self) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.generate")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    options = parser.parse_args()
    prepare = [sys.executable, "-m", "services.inference.prepare", "bundled"]
    folder = subprocess.run(prepare, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def ask(number: int) -> Sample:
        messages = [{"role": "user", "content": prompt(number)}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        stamps = Stamps()
        begin = time.monotonic()
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=options.tokens, do_sample=True, temperature=1.0, top_k=0, streamer=stamps
            )
        end = time.monotonic()
        made = output.shape[1] - inputs["input_ids"].shape[1]
        return Sample(ttft=stamps.times[1] - begin, duration=end - begin, tokens=made)  # the first stamp is the prompt

    ask(0)
    begin = time.monotonic()
    samples = [ask(number) for number in range(options.requests)]
    json.dump({"samples": [asdict(sample) for sample in samples], "wall": time.monotonic() - begin}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
