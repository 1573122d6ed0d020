"""Fills in what is missing in the chart's Secret, once. Runs in the gateway's image; needs only Python.

What is there stays as it is, except the URL of Redis, which follows from its host and password. Prints names of keys,
never what stands under them.
"""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONFLICT = 409
ATTEMPTS = 10
BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def missing(present: dict[str, str], options: argparse.Namespace) -> dict[str, str]:
    """What has to be added to what is there."""
    made: dict[str, str] = {}
    for key in options.token:
        if not present.get(key):
            made[key] = secrets.token_urlsafe(36)
    if not present.get(options.api_key):
        # As the gateway makes keys: services/gateway/accounts/credentials.py.
        made[options.api_key] = f"fb-{''.join(secrets.choice(BASE32) for _ in range(8))}-{secrets.token_urlsafe(32)}"
    if options.redis_url:
        password = made.get(options.redis_password) or present[options.redis_password]
        url = f"redis://:{quote(password, safe='')}@{options.redis_host}:6379/0"
        if present.get(options.redis_url) != url:
            made[options.redis_url] = url
    return made


class Kubernetes:
    """The one Secret, over the API server that every pod is told of."""

    def __init__(self, server: str, account: Path, name: str) -> None:
        namespace = (account / "namespace").read_text().strip()
        self._url = f"{server}/api/v1/namespaces/{namespace}/secrets/{name}"
        self._token = (account / "token").read_text().strip()
        authority = account / "ca.crt"
        self._tls = ssl.create_default_context(cafile=str(authority)) if server.startswith("https:") else None

    def read(self) -> dict[str, Any]:
        return self._call("GET")

    def add(self, data: dict[str, str], version: str) -> None:
        """Adds keys, if nobody has changed the Secret since `version`."""
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        self._call("PATCH", {"metadata": {"resourceVersion": version}, "data": encoded})

    def _call(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - the server's address is the cluster's
            self._url, data=None if body is None else json.dumps(body).encode(), method=method
        )
        request.add_header("Authorization", f"Bearer {self._token}")
        request.add_header("Content-Type", "application/merge-patch+json")
        with urllib.request.urlopen(request, timeout=10, context=self._tls) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
        return answer


def fill(kubernetes: Kubernetes, options: argparse.Namespace) -> list[str]:
    """Adds what is missing; the names of what was added.

    Raises:
        urllib.error.URLError: Kubernetes can't be reached or refuses.
    """
    for attempt in range(ATTEMPTS):
        secret = kubernetes.read()
        present = {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}
        made = missing(present, options)
        if not made:
            return []
        try:
            kubernetes.add(made, secret["metadata"]["resourceVersion"])
        except urllib.error.HTTPError as error:
            if error.code != CONFLICT or attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.1 * attempt)  # another one was faster: look again at what is missing now
        else:
            return sorted(made)
    raise AssertionError("the last attempt returns or raises")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secret", required=True, help="name of the Secret")
    parser.add_argument("--token", action="append", default=[], help="key that gets 48 random characters")
    parser.add_argument("--api-key", required=True, help="key that gets an API key")
    parser.add_argument("--redis-url", help="key that gets the URL of Redis")
    parser.add_argument("--redis-host")
    parser.add_argument("--redis-password", help="key that holds the password of Redis")
    parser.add_argument("--server", default="https://kubernetes.default.svc", help="the API server")
    parser.add_argument("--account", type=Path, default=ACCOUNT, help="folder of the service account's files")
    options = parser.parse_args(arguments)
    try:
        added = fill(Kubernetes(options.server, options.account, options.secret), options)
    except urllib.error.URLError as error:
        sys.stderr.write(f"The Secret {options.secret} can't be filled in: {error}\n")
        return 1
    sys.stdout.write(f"{options.secret}: {'added ' + ', '.join(added) if added else 'complete, nothing changed'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
