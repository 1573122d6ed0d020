"""The command line. Settings are environment variables (docs/settings.md), so the commands take few options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from forebay import __version__

Command = Callable[[argparse.Namespace], int]
INTERRUPTED = 130
"""What a shell's commands end with after Ctrl-C: 128 and the number of the signal."""


def parser() -> argparse.ArgumentParser:
    """All commands; each one's function stands in `run`."""
    top = argparse.ArgumentParser(
        prog="forebay",
        description="An authenticated OpenAI-compatible endpoint on a local model.",
        epilog="Settings are environment variables FOREBAY_…; docs/settings.md lists them.",
    )
    top.add_argument("--version", action="version", version=f"forebay {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    up = commands.add_parser("up", help="start the whole stack here, until Ctrl-C", description=_up.__doc__)
    up.set_defaults(run=_up)

    status = commands.add_parser("status", help="list the processes of the stack", description=_status.__doc__)
    status.add_argument("--json", action="store_true", help="as JSON, for programs")
    status.set_defaults(run=_status)

    bench = commands.add_parser("bench", help="load an endpoint and print what clients see", description=_bench.__doc__)
    bench.add_argument("--url", help="base URL of the endpoint; by default the stack that runs here")
    bench.add_argument("--key", help="API key; by default FOREBAY_API_KEY, else the stack's demo key")
    bench.add_argument("--model", help="model to ask; by default the first that the endpoint lists")
    bench.add_argument("--clients", type=_count, nargs="+", default=[1, 4, 16], metavar="N", help="clients at a time")
    bench.add_argument("--requests", type=_count, default=3, help="requests that each client sends")
    bench.add_argument("--tokens", type=_count, default=64, help="tokens that each request generates at most")
    bench.add_argument("--json", action="store_true", help="as JSON, for programs")
    bench.set_defaults(run=_bench)

    explain = commands.add_parser("explain", help="say where a request went and why", description=_explain.__doc__)
    explain.add_argument("request_id", metavar="REQUEST-ID", help="the X-Request-Id of its answer")
    explain.add_argument("--url", help="base URL of the gateway; by default the stack that runs here")
    explain.add_argument("--key", help="key or access token of an administrator; by default FOREBAY_ADMIN_KEY")
    explain.add_argument("--json", action="store_true", help="the ledger's rows as JSON, for programs")
    explain.set_defaults(run=_explain)
    return top


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit status."""
    options = parser().parse_args(arguments)
    run: Command = options.run
    try:
        return run(options)
    except KeyboardInterrupt:  # but in `up`, which stops what it has started
        return INTERRUPTED


# The commands import what they need when they run: `--help` answers at once, and `status` loads no database driver.


def _up(_options: argparse.Namespace) -> int:
    """Start cache, inference pods and gateways on this machine and keep them running until Ctrl-C."""
    from forebay.up import up  # noqa: PLC0415

    return up(dict(os.environ))


def _status(options: argparse.Namespace) -> int:
    """List every process of the stack that runs under FOREBAY_HOME. Exit status 3 when none runs."""
    from forebay.checks import Refused  # noqa: PLC0415
    from forebay.status import status  # noqa: PLC0415

    try:
        return status(as_json=options.json)
    except Refused as refused:
        print(f"forebay: {refused}", file=sys.stderr)
        return 1


def _bench(options: argparse.Namespace) -> int:
    """Load an OpenAI-compatible endpoint with streaming clients; print tokens/s, time to first token and per token."""
    from forebay.bench import BenchFailed, run  # noqa: PLC0415
    from forebay.checks import Refused  # noqa: PLC0415

    try:
        return run(options)
    except (BenchFailed, Refused) as failed:
        print(f"forebay bench: {failed}", file=sys.stderr)
        return 1


def _explain(options: argparse.Namespace) -> int:
    """Say which model and pod a request went to, why, and what came of it, out of the gateway's ledger."""
    from forebay.checks import Refused  # noqa: PLC0415
    from forebay.explain import ExplainFailed, run  # noqa: PLC0415

    try:
        return run(options)
    except (ExplainFailed, Refused) as failed:
        print(f"forebay explain: {failed}", file=sys.stderr)
        return 1
