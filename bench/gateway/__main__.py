"""`make bench-gateway`: one gateway worker on one core, with everything on, beside LiteLLM's proxy and nginx.

Valkey, the pod, which only pretends to compute, and the load run on another core. Of several rounds, spread over the
run, each side's best counts. Nothing else should run meanwhile. Takes about five minutes. Needs wrk; nginx, and what
`make bench-gateway-rivals` installs, where a row is to have them.
Options go through make as `make bench-gateway OPTIONS="--only streams jitter"`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from bench.engine.rows import Row, judge, table
from bench.gateway import servers, steps
from bench.gateway.measures import JOBS
from bench.gateway.rows import PROXIED, ROWS
from bench.gateway.servers import RIVALS, ROOT, Cores, Failed, Place
from bench.machine import QUIET, Others, processor

PROFILED = {PROXIED: ("cpu", 2.0), "hits": ("cpu", 2.0), "streams": ("cpu_per_chunk", 8.0)}
"""Jobs whose time is looked into, where their results say what it is, and seconds until their load is there."""


def main() -> int:
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    folder = options.json.resolve().parent / "gateway"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.profile:
            profile(options.seconds, folder)
            return 0
        results, failures = measure(chosen, options.rounds, options.seconds, folder)
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    verdicts = [judge(row, results, failures) for row in chosen]
    print(f"\n{date.today()}, {processor()}, one core for the proxy, one for the rest, {options.rounds} rounds\n")
    print(table(verdicts))
    if disturbed := {name: result["others"] for name, result in results.items() if result["others"] > QUIET}:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in disturbed.items())
        print(f"\nOther programs took part of the cores, so measure again without them: {shares}")
    figures = {
        "date": str(date.today()),
        "processor": processor(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "rows": [verdict.figures() for verdict in verdicts],
        "results": results,
        "failures": failures,
    }
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\n{os.path.relpath(options.json)}")
    draw(options.json)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gateway",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n" + "\n".join(f"  {row.name:10} {row.text}" for row in ROWS),
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in ROWS], help="these rows only")
    parser.add_argument("--json", type=Path, default=Path("build/bench/gateway.json"), help="where the figures go")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each round loads a server")
    parser.add_argument("--profile", action="store_true", help="say where the time goes instead, step by step")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    return options


def measure(chosen: list[Row], rounds: int, seconds: float, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The results of all jobs that the rows need, and why those that failed did.

    Raises:
        Failed: there is only one core, or Valkey or the pod do not start.
    """
    needed = {job for row in chosen for job in row.jobs}
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    cores = Cores.of_this_machine()
    with servers.valkey(cores, folder) as redis, servers.pod(cores, folder) as pod:
        place = Place(cores, folder, pod, redis)
        for number in range(rounds):
            for name in (name for name in JOBS if name in needed and name not in failures):
                print(f"round {number + 1}: {name} …", flush=True)
                others = Others()
                try:
                    with JOBS[name].start(place) as server:
                        run = JOBS[name].measure(server, cores, seconds)
                except Failed as failure:
                    failures[name] = str(failure)
                    print(f"  {failure}", flush=True)
                    continue
                result = results.setdefault(name, {"runs": [], "others": 0.0})
                result["runs"].append(run)
                result["others"] = max(result["others"], others.share())
    return results, failures


def profile(seconds: float, folder: Path) -> None:
    """Prints what each step of a request and of a chunk takes.

    Raises:
        Failed: py-spy is not installed, or a server does not start.
    """
    cores = Cores.of_this_machine()
    with servers.valkey(cores, folder) as redis, servers.pod(cores, folder) as pod, ThreadPoolExecutor(1) as aside:
        for name, (cost, settle) in PROFILED.items():
            with JOBS[name].start(Place(cores, folder, pod, redis)) as server:
                run = JOBS[name].measure(server, cores, seconds)
                load = aside.submit(JOBS[name].measure, server, cores, 3 * seconds)
                found = steps.record(server, seconds, settle=settle)
                load.result()
            print(f"\n{name}\n{steps.table(found, run[cost] * 1e6)}", flush=True)


def draw(figures: Path) -> None:
    """The picture, where the rivals' environment is there to draw it."""
    python = RIVALS / "python"
    if not python.exists():
        print("no picture: make bench-gateway-rivals")
        return
    picture = figures.with_suffix(".png")
    subprocess.run([str(python), "-m", "bench.gateway.plot", str(figures), str(picture)], cwd=ROOT, check=True)
    print(os.path.relpath(picture))


if __name__ == "__main__":
    sys.exit(main())
