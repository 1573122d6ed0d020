"""`make bench`: the whole stack at 1, 4 and 16 streaming clients, beside one-request-at-a-time `generate`.

Both sides run here and now, on the same model file, one after the other: only the ratios mean anything, for machines
differ. Prints a table and writes `build/bench.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from forebay.bench import Result, Sample, Target, measure, table
from forebay.fleet import next_free

MODEL = "smollm2-135m-instruct"
CLIENTS = (1, 4, 16)
FIRST_PORT = 18000


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=64, help="tokens that each request generates at most")
    parser.add_argument("--rounds", type=int, default=3, help="requests that each client sends")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    options = parser.parse_args()

    home = Path(os.environ.get("FOREBAY_HOME", ".forebay")).resolve()
    print("one request at a time, transformers' generate …", flush=True)
    baseline = one_by_one(home, options.tokens, requests=8)
    print("the stack …", flush=True)
    with stack(home) as (url, key):
        target = Target(url, key, MODEL, options.tokens)
        measure(target, clients=4, requests=8)
        results = [measure(target, clients, clients * options.rounds) for clients in CLIENTS]

    print(f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {MODEL}, fp32")
    print(f"\ngenerate, one request at a time\n{table([baseline])}\n\nForebay, through gateway and HTTP, streaming")
    print(table(results))
    ratios = {result.clients: result.tokens_per_second / baseline.tokens_per_second for result in results}
    print("\ntokens/s against generate: " + ", ".join(f"{ratio:.1f}x at {n}" for n, ratio in ratios.items()))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    figures = {"date": str(date.today()), "generate": baseline.row(), "forebay": [result.row() for result in results]}
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def one_by_one(home: Path, tokens: int, requests: int) -> Result:
    """`generate` of transformers on the same model file, one request after the other, sampled like the stack's."""
    # In a process of its own, so that its memory and threads are gone when the stack is measured.
    command = [sys.executable, "-m", "bench.generate", "--tokens", str(tokens), "--requests", str(requests)]
    output = subprocess.run(
        command, env={**os.environ, "FOREBAY_HOME": str(home)}, stdout=subprocess.PIPE, check=True
    ).stdout
    rows: dict[str, Any] = json.loads(output)
    return Result.of(1, [Sample(**row) for row in rows["samples"]], rows["wall"])


@contextmanager
def stack(home: Path, settings: Mapping[str, str] | None = None) -> Iterator[tuple[str, str]]:
    """`forebay up` on its own state but the same models; yields endpoint and key, and stops it.

    Args:
        settings: more environment variables for it.
    """
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
        (Path(folder) / "models").symlink_to(home / "models")
        # The limits of the demo key are not what is measured here.
        limits = {"FOREBAY_REQUESTS_PER_MINUTE": "1000000", "FOREBAY_TOKENS_PER_MINUTE": "1000000000"}
        # Of its own, since a stack may run here already.
        names = ("FOREBAY_GATEWAY_PORT", "FOREBAY_INFERENCE_PORT", "FOREBAY_METRICS_PORT")
        ports = dict(zip(names, map(str, next_free("127.0.0.1", FIRST_PORT, len(names), set())), strict=True))
        environment = {**os.environ, **limits, **ports, **(settings or {}), "FOREBAY_HOME": folder}
        process = subprocess.Popen([sys.executable, "-m", "forebay", "up"], env=environment, stdout=subprocess.DEVNULL)
        try:
            state = await_ready(process, environment)
            yield state["endpoint"], Path(state["key_file"]).read_text().strip()
        finally:
            process.terminate()
            process.wait(30)


def await_ready(process: subprocess.Popen[bytes], environment: dict[str, str]) -> dict[str, Any]:
    """The stack's status once it is ready."""
    status = [sys.executable, "-m", "forebay", "status", "--json"]
    while True:
        if process.poll() is not None:
            raise SystemExit(f"forebay up ended with {process.returncode}; run it by itself to see why")
        answer = subprocess.run(status, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        if answer.returncode == 0:
            state: dict[str, Any] = json.loads(answer.stdout)
            if state["state"] == "ready":
                return state
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
