"""The Job that fills in the Secret: against a server that keeps one Secret as Kubernetes does."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from services.gateway.accounts.credentials import KEY
from tests.chart.rendering import CHART, Manifest, model, render

SCRIPT = CHART / "files" / "make_secrets.py"
KEYS = {"jwt-secret", "key-secret", "admin-password", "cache-password", "api-key", "redis-url"}


class Cluster(HTTPServer):
    """One Secret, behind GET and JSON merge patch with optimistic locking."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data: dict[str, str] = {}
        self.version = 1
        self.conflicts = 0
        """So many patches are answered as if another writer had been faster."""
        self.seen: list[tuple[str, str, str]] = []

    def values(self) -> dict[str, str]:
        return {key: base64.b64decode(value).decode() for key, value in self.data.items()}


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        self._answer(200, {"metadata": {"resourceVersion": str(self.server.version)}, "data": self.server.data or None})

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        if self.server.conflicts:
            self.server.conflicts -= 1
            self.server.data["written-by-another"] = base64.b64encode(b"x").decode()
            self.server.version += 1
        if body["metadata"]["resourceVersion"] != str(self.server.version):
            self._answer(409, {"reason": "Conflict"})
            return
        self.server.data |= body["data"]
        self.server.version += 1
        self._answer(200, {})

    def _answer(self, status: int, body: object) -> None:
        self.server.seen.append((self.command, self.path, self.headers["Authorization"]))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    server = Cluster()
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def job() -> Manifest:
    (found,) = render(values=model()).of_kind("Job")
    return dict(found)


def run(cluster: Cluster, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return run_against(cluster.server_port, tmp_path)


def run_against(port: int, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script with the arguments that the chart gives it."""
    (tmp_path / "token").write_text("the account's token\n")
    (tmp_path / "namespace").write_text("llm")
    arguments = job()["spec"]["template"]["spec"]["containers"][0]["command"][2:]
    server = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-I", SCRIPT, *arguments, f"--server={server}", f"--account={tmp_path}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_empty_secret_is_filled_in(cluster: Cluster, tmp_path: Path) -> None:
    assert run(cluster, tmp_path).returncode == 0
    made = cluster.values()
    assert made.keys() == KEYS
    assert all(len(made[key]) >= 32 for key in ("jwt-secret", "key-secret"))
    assert len(set(made.values())) == len(KEYS)
    assert made["redis-url"] == f"redis://:{made['cache-password']}@forebay-cache:6379/0"


def test_the_api_key_has_the_form_that_the_gateway_gives_keys(cluster: Cluster, tmp_path: Path) -> None:
    run(cluster, tmp_path)
    assert KEY.fullmatch(cluster.values()["api-key"])


def test_what_is_there_stays_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    run(cluster, tmp_path)
    first = cluster.values()
    done = run(cluster, tmp_path)
    assert (cluster.values(), cluster.version) == (first, 2)
    assert "nothing changed" in done.stdout


def test_only_what_is_missing_is_added(cluster: Cluster, tmp_path: Path) -> None:
    cluster.data["admin-password"] = base64.b64encode(b"chosen by hand").decode()
    cluster.data["mine"] = base64.b64encode(b"untouched").decode()
    run(cluster, tmp_path)
    assert cluster.values()["admin-password"] == "chosen by hand"
    assert cluster.values()["mine"] == "untouched"
    assert cluster.values().keys() == KEYS | {"mine"}


def test_the_url_of_redis_follows_its_password(cluster: Cluster, tmp_path: Path) -> None:
    run(cluster, tmp_path)
    cluster.data["cache-password"] = base64.b64encode(b"a/new@one").decode()
    run(cluster, tmp_path)
    assert cluster.values()["redis-url"] == "redis://:a%2Fnew%40one@forebay-cache:6379/0"


def test_two_writers_do_not_undo_each_other(cluster: Cluster, tmp_path: Path) -> None:
    cluster.conflicts = 2
    assert run(cluster, tmp_path).returncode == 0
    assert cluster.values().keys() == KEYS | {"written-by-another"}


def test_it_says_which_keys_it_added_and_never_what_they_hold(cluster: Cluster, tmp_path: Path) -> None:
    done = run(cluster, tmp_path)
    assert all(key in done.stdout for key in KEYS)
    assert not [value for value in cluster.values().values() if value in done.stdout + done.stderr]


def test_it_asks_for_nothing_but_its_secret_with_the_accounts_token(cluster: Cluster, tmp_path: Path) -> None:
    run(cluster, tmp_path)
    path = "/api/v1/namespaces/llm/secrets/forebay-secrets"
    token = "Bearer the account's token"
    assert cluster.seen == [("GET", path, token), ("PATCH", path, token)]


def test_its_account_may_do_that_and_nothing_else() -> None:
    release = render(values=model())
    assert release.one("Role")["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["forebay-secrets"], "verbs": ["get", "patch"]}
    ]
    (subject,) = release.one("RoleBinding")["subjects"]
    pod = job()["spec"]["template"]["spec"]
    assert (subject["name"], subject["namespace"]) == (pod["serviceAccountName"], "llm")


def test_without_a_cluster_it_fails_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as nobody:  # bound and not listening: whoever connects is refused
        nobody.bind(("127.0.0.1", 0))
        done = run_against(nobody.getsockname()[1], tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_the_secret_is_rendered_empty_and_kept() -> None:
    secret = render(values=model()).one("Secret")
    assert not {"data", "stringData"} & secret.keys()
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_a_job_that_changes_gets_another_name_as_jobs_cannot_be_changed() -> None:
    names = set()
    for values in ({}, {"gateway": {"image": {"tag": "9.9.9"}}}, {"secrets": {"keys": {"jwtSecret": "other"}}}):
        release = render(values={**model(), **values})
        (found,) = release.of_kind("Job")
        assert re.fullmatch(r"forebay-secrets-[0-9a-f]{8}", found["metadata"]["name"])
        names.add(found["metadata"]["name"])
    assert len(names) == 3
