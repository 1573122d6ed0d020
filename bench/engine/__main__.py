"""`make bench-engine`: the engine beside its rivals, all in one run on one machine, as ratios with their goals.

Every contender continues the same prompts greedily by 64 tokens each, in a process of its own, one after the other; of
several rounds each side's best counts. Nothing else should run meanwhile. Takes about ten minutes on two cores.
Options go through make as `make bench-engine OPTIONS="--quick"`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.engine import jobs, rows
from bench.engine.jobs import JOBS, Failed
from bench.engine.perplexity import TEXT
from bench.engine.rows import ROWS, Row, judge
from bench.machine import QUIET, processor
from services.inference.engine.source import BUNDLED_PACKAGE


def main() -> int:
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    rounds = 1 if options.quick else options.rounds
    options.json = options.json.resolve()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        results, failures = measure(chosen, rounds, options.json.parent)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    verdicts = [judge(row, results, failures) for row in chosen]

    print(f"\n{date.today()}, {processor()}, {os.cpu_count()} cores, SmolLM2-135M-Instruct, {rounds} rounds\n")
    print(rows.table(verdicts))
    print(f"\n{rows.rates(results)}")
    for name, result in results.items():
        if "runs" not in result:
            print(f"{name}: {json.dumps(result)}")
    if disturbed := {name: result["others"] for name, result in results.items() if result["others"] > QUIET}:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in disturbed.items())
        print(f"\nOther programs took part of the cores, so measure again without them: {shares}")
    figures = {
        "date": str(date.today()),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "rounds": rounds,
        "rows": [verdict.figures() for verdict in verdicts],
        "results": results,
        "failures": failures,
    }
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\n{os.path.relpath(options.json)}")
    draw(figures, options.json.with_suffix(".png"))
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {row.name:18} {row.text}" for row in ROWS),
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in ROWS], help="these rows only")
    parser.add_argument("--json", type=Path, default=Path("build/bench/engine.json"), help="where the figures go")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender is measured")
    parser.add_argument("--quick", action="store_true", help="one round: to see that everything runs")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def measure(chosen: list[Row], rounds: int, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The results of all jobs that the rows need, and why those that failed did."""
    model = find_model()
    prompts = make_prompts(model["folder"], rounds)
    needed = {job for row in chosen for job in row.jobs}
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for name in (name for name in JOBS if name in needed):
        print(f"{name} …", flush=True)
        try:
            results[name] = jobs.run(JOBS[name], model, prompts, folder / name.replace(" ", "-"))
        except Failed as failure:
            failures[name] = str(failure)
            print(f"  {failure}", flush=True)
    return results, failures


def find_model() -> dict[str, str]:
    """Folder and file of the bundled model, which is converted first where it has not been."""
    prepare = [sys.executable, "-m", "services.inference.prepare", "bundled"]
    folder = subprocess.run(prepare, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    package = find_spec(BUNDLED_PACKAGE)
    places = (package.submodule_search_locations or []) if package else []
    file = next(file for place in places for file in Path(place).glob("*.gguf"))
    return {"folder": str(Path(folder).resolve()), "file": str(file)}


def make_prompts(folder: str, rounds: int) -> dict[str, list[jobs.Prompts]]:
    """The prompts of all rounds and of the one before them that warms up."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = max(jobs.SIZES)
    return {
        "chats": jobs.chats(tokenizer, rounds + 1, size),
        "prefixed": jobs.prefixed(tokenizer, rounds + 1, size, TEXT.read_text()),
    }


def draw(figures: dict[str, Any], path: Path) -> None:
    """The picture, where the rivals' environment is there to draw it."""
    rates = {
        name: {size: rows.rate(name, int(size))(figures["results"], "best") for size in result["runs"]}
        for name, result in figures["results"].items()
        if "runs" in result and not name.startswith("prefix")
    }
    task = {"rates": rates, "rows": figures["rows"], "path": str(path)}
    try:
        jobs.run(jobs.Job("plot", task, rival=True), {"folder": "", "file": ""}, {}, path.with_name("plot"))
        print(os.path.relpath(path))
    except Failed as failure:
        print(f"no picture: {failure}")


if __name__ == "__main__":
    sys.exit(main())
