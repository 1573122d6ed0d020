"""`forebay explain REQUEST-ID`: where a request went, why it went there, and what came of it, out of the ledger."""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

from forebay import checks, state
from services.common.settings import CommonSettings
from services.gateway.route import read

TIMEOUT = 10.0
KEY = "FOREBAY_ADMIN_KEY"
POLICIES = {
    "session": "the pod of the session that the client named",
    "prefix": "the pod that this conversation belongs to, whose cache has its beginning",
    "spilled": "the conversation's own pod had too much to do, and this is the next one",
    "least-loaded": "the less loaded of two at random",
    "only": "no other pod took requests",
    "hold": "it waited for a pod to become ready",
}
CACHES = {
    "hit": "the answer was in the response cache: no pod was asked",
    "miss": "the answer was not in the response cache, and is kept there if it came to its end",
    "bypass": "answers like this are not cached, or the client wanted a fresh one",
    "coalesced": "the same request was being answered, and both got that answer",
    "replayed": "the client sent the request again, and got the first one's answer",
}
OUTCOMES = {
    "client_error": "the request was refused for what it says",
    "client_gone": "the client hung up",
    "overloaded": "every pod that was asked was full",
    "timeout": "the request's time was over",
    "upstream_error": "no pod could answer, or the one that did failed",
    "error": "the gateway failed, or had to end",
    "orphaned": "its gateway died, and the pod said what was used",
    "gateway_lost": "its gateway died, and no pod knew what was used",
}
"""Of those that are not as they should be."""


class ExplainFailed(Exception):
    """There is no explanation to be had; the message says why and what to do."""


def run(options: argparse.Namespace) -> int:
    """The command. Returns its exit status.

    Raises:
        ExplainFailed: the gateway can't be asked, refuses, or does not know the request.
    """
    rows = fetch(*find_gateway(options), options.request_id)
    print(json.dumps(rows, indent=2) if options.json else "\n\n".join(explain(row) for row in rows))
    return 0


def find_gateway(options: argparse.Namespace) -> tuple[str, str]:
    """The gateway's base URL, that of the stack that runs here unless the options name one, and the credential."""
    url, key = options.url, options.key or os.environ.get(KEY)
    if url is None:
        running = state.read_status(state.Home(checks.read_settings(CommonSettings).home.expanduser().resolve()))
        if running is None:
            raise ExplainFailed("no stack runs here: name a gateway with --url")
        url = str(running["endpoint"])
    if not key:
        raise ExplainFailed(f"name the key or access token of an administrator with --key or {KEY}")
    return url.rstrip("/").removesuffix("/v1"), key


def fetch(url: str, key: str, request_id: str) -> list[dict[str, Any]]:
    """The ledger's rows of a request: one, unless a client has used its id again.

    Raises:
        ExplainFailed: the gateway can't be asked, refuses, or does not know the request.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ExplainFailed(f"'{url}' is no http:// or https:// URL")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT)
    path = f"{parts.path}/admin/requests/{quote(request_id, safe='')}"
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, HTTPException) as error:
        raise ExplainFailed(f"no gateway answers at {url}: {error}") from None
    finally:
        connection.close()
    if status != 200:
        raise ExplainFailed(_refusal(status, body, request_id))
    try:
        rows: list[dict[str, Any]] = json.loads(body)["data"]
    except (ValueError, KeyError, TypeError):
        raise ExplainFailed(f"what answers at {url} is no gateway of Forebay") from None
    return rows


def explain(row: dict[str, Any]) -> str:
    """A row of the ledger, in words."""
    route = read(row["route"])
    asked = f", which stands for {route['asked']}" if "asked" in route else ""
    lines = [
        ("model", f"{row['model']}{asked}"),
        ("replica", _replica(row, route)),
        ("queue", f"{route['queue']} requests waited there when it was chosen" if "queue" in route else None),
        ("held", f"{route['held']} s for a pod to be ready" if "held" in route else None),
        ("phase", f"{route['phase']}: why no pod took it at last" if "phase" in route else None),
        ("cache", f"{row['cache']}: {CACHES[row['cache']]}" if row["cache"] in CACHES else row["cache"] or None),
        ("retries", f"sent to another pod {_times(row['retries'])}" if row["retries"] else "none"),
        ("resumes", f"went on at another pod in mid-answer {_times(row['resumes'])}" if row["resumes"] else None),
        ("outcome", _outcome(row)),
        ("tokens", _tokens(row)),
    ]
    begun = datetime.fromtimestamp(row["started_ms"] / 1000, UTC)
    head = f"{row['request_id']}  {begun:%Y-%m-%d %H:%M:%S} UTC  {row['kind']} of {row['tenant']} ({row['subject']})"
    return "\n".join([head, *(f"  {name:8} {text}" for name, text in lines if text is not None)])


def _replica(row: dict[str, Any], route: dict[str, str]) -> str:
    policy = route.get("policy")
    why = f" ({policy}: {POLICIES.get(policy, 'chosen by a newer gateway')})" if policy else ""
    return f"{route.get('replica') or row['upstream'] or 'none'}{why}"


def _outcome(row: dict[str, Any]) -> str:
    first = f", first token after {row['ttft_ms'] / 1000:.3f} s" if row["ttft_ms"] is not None else ""
    why = f": {OUTCOMES[row['outcome']]}" if row["outcome"] in OUTCOMES else ""
    return f"{row['outcome']} after {row['duration_ms'] / 1000:.3f} s{first}{why}"


def _tokens(row: dict[str, Any]) -> str:
    cached = f" ({row['cached_tokens']} from the pod's prefix cache)" if row["cached_tokens"] else ""
    computed = f", {row['compute_seconds']:.3f} s of compute" if row["compute_seconds"] is not None else ""
    cost = f", cost {row['cost_micros'] / 1e6:.6f}" if row["cost_micros"] else ""
    return f"{row['prompt_tokens']} of prompt{cached}, {row['completion_tokens']} of answer{computed}{cost}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _refusal(status: int, body: bytes, request_id: str) -> str:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = ""
    if status == 401:
        return f"the gateway does not accept the key: {message}"
    if status == 403:
        return "the key has not the scope 'admin': make one that has with POST /admin/keys"
    if status == 404:
        return (
            f"the ledger has no request {request_id}: it is written when the answer has ended, a second later, "
            "and what was refused by credential or limits is in the log alone"
        )
    return f"the gateway answers {status}: {message}"
