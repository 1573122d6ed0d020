"""`forebay up`: the whole stack on one machine, in the foreground, until Ctrl-C.

The order is cache, model, pods, gateways; each is ready before the next is started. Children write to
`$FOREBAY_HOME/logs/<name>.log`; what an operator should know is said here, on stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from sqlalchemy.exc import SQLAlchemyError

from forebay import __version__, checks, fleet, logs, state
from forebay.child import Spec, describe
from forebay.probe import reachable
from forebay.spawn import describe_exit
from forebay.supervise import Failure, StopAsked, Supervisor
from services.common.settings import FleetSettings, GatewaySettings, InferenceSettings
from services.gateway.bootstrap import Bootstrapped, bootstrap

CACHE_PATIENCE = 10.0
GATEWAY_PATIENCE = 60.0
"""Seconds these may take to get ready. A pod may take as long as its model needs, and says what it is doing."""
STOP_LIMIT = 9.0
"""Seconds that stopping takes at most, unless the settings grant more (`stop_limit`)."""
LOG_CHECK = 60.0
"""Seconds between looks at the size of the children's logs."""


class Stack:
    """One run of `forebay up`: what it was told, the children, and what is said about them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """
        Raises:
            checks.Refused, state.AlreadyRunning: the stack cannot be started.
            OSError: FOREBAY_HOME cannot be written.
        """
        self._begin = time.monotonic()
        self._since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._complete = False
        self._settings = checks.read_settings(FleetSettings)
        self._inference = checks.read_settings(InferenceSettings)
        self._home = state.open_home(self._settings.home)
        self._lock = state.lock(self._home)
        self._models = checks.catalogue(self._inference.model)
        self._env = fleet.environment(environment, self._home, self._models)
        # The children's environment is ours too: the first accounts are made in this process.
        os.environ.update(self._env)
        self._gateway = checks.read_settings(GatewaySettings)
        self._own_cache = not checks.is_set(environment, "FOREBAY_REDIS_URL")
        self._preflight()
        self._ports = fleet.choose_ports(self._settings, self._gateway, self._inference, with_cache=self._own_cache)
        shutil.rmtree(self._home.temporary, ignore_errors=True)
        self._home.temporary.mkdir(mode=0o700)
        self._supervisor = Supervisor(self._say, self._write_status)

    def run(self) -> int:
        """Starts everything, says how to use it, and keeps it running. Returns the exit status."""
        with self._lock, self._supervisor.signals():
            try:
                accounts = self._start()
                self._complete = True
                self._write_status()
                print(self._welcome(accounts), flush=True)
                self._keep()
            except StopAsked:
                print("\nStopping …", flush=True)
                code = 0
            except Failure as failure:
                print(f"\nforebay: {failure}\nStopping …", file=sys.stderr, flush=True)
                code = 1
            finally:
                # Also when the terminal is gone and a print fails.
                self._supervisor.stop(stop_limit(self._gateway))
                self._home.status_file.unlink(missing_ok=True)
                shutil.rmtree(self._home.temporary, ignore_errors=True)
            print(f"Stopped after {time.monotonic() - self._begin:.0f} s.", flush=True)
        return code

    def _preflight(self) -> None:
        sources = list(self._models.values())
        needed = checks.memory_of(sources[0]) * self._settings.pods
        checks.check_memory(needed, checks.free_memory(), self._settings.pods)
        if not any(self._home.models.glob("*/config.json")):
            needed = sum(checks.disk_of(source) for source in sources)
            checks.check_disk(needed, checks.free_disk(self._home.path), self._home.path)

    def _start(self) -> Bootstrapped:
        print(f"forebay {__version__}: home {self._home.path}, logs {self._home.logs}", flush=True)
        redis_url = self._start_cache()
        self._prepare()
        host = self._settings.host
        self._start_all(fleet.pods(self._home, self._ports, host, self._env), None)
        accounts = self._make_accounts()
        self._start_all(fleet.gateways(self._home, self._ports, host, self._env, redis_url), GATEWAY_PATIENCE)
        return accounts

    def _start_cache(self) -> str:
        if not self._own_cache:
            address = fleet.cache_address(self._gateway.redis_url)
            if address and not reachable(*address):
                self._say("cache", f"WARNING: nothing answers at {address[0]}:{address[1]} (FOREBAY_REDIS_URL)")
            return self._gateway.redis_url
        port = self._ports.cache or fleet.CACHE_PORT
        self._start_all([fleet.cache(self._home, port, self._env)], CACHE_PATIENCE)
        return f"redis://:{fleet.cache_password(self._home)}@{fleet.CACHE_HOST}:{port}/0"

    def _prepare(self) -> None:
        result = self._supervisor.run_job(
            (sys.executable, "-m", "services.inference.prepare"),
            self._env,
            lambda line: self._say("model", line),
            cwd=fleet.CODE,
        )
        if result.code != 0:
            raise Failure(result.last_error or f"The model cannot be prepared: {describe_exit(result.code)}.")

    def _make_accounts(self) -> Bootstrapped:
        try:
            return bootstrap(self._gateway, self._home.key_file)
        except (OSError, SQLAlchemyError) as error:
            reason = str(error).splitlines()[0]
            raise Failure(f"The accounts cannot be made ({reason}); see FOREBAY_DATABASE_URL.") from error

    def _start_all(self, specs: list[Spec], patience: float | None) -> None:
        for spec in specs:
            logs.rotate(spec.log, self._settings.log_file_backups)
        self._supervisor.run_until_ready([self._supervisor.start(spec) for spec in specs], patience)

    def _keep(self) -> None:
        look = time.monotonic() + LOG_CHECK
        while True:
            self._supervisor.turn()
            if time.monotonic() > look:
                look += LOG_CHECK
                for child in self._supervisor.children:
                    logs.trim(child.spec.log, self._settings.log_file_max_bytes, self._settings.log_file_backups)

    def _say(self, name: str, text: str) -> None:
        print(f"{time.monotonic() - self._begin:7.1f} s  {name:<10} {text}", flush=True)

    def _write_status(self) -> None:
        children = [describe(child) for child in self._supervisor.children]
        status = {
            "state": overall([child["state"] for child in children], self._complete, self._supervisor.stopping),
            "pid": os.getpid(),
            "pid_created": psutil.Process().create_time(),
            "since": self._since,
            "version": __version__,
            "home": str(self._home.path),
            "endpoint": self._endpoint,
            "key_file": str(self._home.key_file),
            "processes": children,
        }
        state.write_status(self._home, status)

    @property
    def _endpoint(self) -> str:
        return f"{fleet.base_url(self._settings.host, self._ports.gateways[0])}/v1"

    def _welcome(self, accounts: Bootstrapped) -> str:
        models = self._supervisor.children[-1].models
        facts = {
            "Endpoint": self._endpoint,
            "Model": ", ".join(models),
            "API key": f"{accounts.demo_key}  (also in {self._home.key_file})",
            "Admin": admin_line(accounts),
            "Metrics": ", ".join(
                child.spec.metrics_url for child in self._supervisor.children if child.spec.metrics_url
            ),
            "Logs": str(self._home.logs / "*.log"),
        }
        lines = "\n".join(f"  {name:<9} {value}" for name, value in facts.items())
        seconds = time.monotonic() - self._begin
        return (
            f"\nForebay is ready after {seconds:.0f} s.\n\n{lines}\n\nTry it in a second shell:\n\n"
            f"  {curl_line(self._endpoint, accounts.demo_key, models[0])}\n\nCtrl-C stops everything.\n"
        )


def stop_limit(settings: GatewaySettings) -> float:
    """Seconds that stopping takes at most: a gateway takes requests for its drain delay, and lets those that run end in
    its grace. The others end with nobody to wait for, and in the second that is left."""
    return max(STOP_LIMIT, settings.drain_delay + settings.shutdown_grace + 1)


def admin_line(accounts: Bootstrapped) -> str:
    """How to log in as the administrator; the password only when it was made just now."""
    if accounts.admin_password is None:
        return f"{accounts.admin_username}  (the password was shown at the first start)"
    return f"{accounts.admin_username}  password {accounts.admin_password}  (shown once: keep it)"


def curl_line(endpoint: str, key: str, model: str) -> str:
    """A request that works when it is pasted into a shell."""
    body = {"model": model, "messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 48}
    words = [f"{endpoint}/chat/completions", "-H", f"Authorization: Bearer {key}"]
    words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return "curl " + shlex.join(words)


def overall(states: list[str], complete: bool, stopping: bool) -> str:
    """The state of the whole stack: starting, ready, degraded or stopping."""
    if stopping:
        return "stopping"
    if not complete:
        return "starting"
    return "ready" if all(state == "ready" for state in states) else "degraded"


def up(environment: Mapping[str, str]) -> int:
    """Runs the stack until it is told to stop. Returns the exit status: 0 stopped as told, 1 it cannot run."""
    for warning in checks.unknown_variables(environment):
        print(f"forebay: warning: {warning}", file=sys.stderr, flush=True)
    if checks.is_set(environment, "FOREBAY_UPSTREAMS"):
        print(
            "forebay: warning: FOREBAY_UPSTREAMS has no effect here: these gateways serve the pods that are started.",
            file=sys.stderr,
            flush=True,
        )
    try:
        stack = Stack(environment)
    except (checks.Refused, state.AlreadyRunning) as refused:
        print(f"forebay: {refused}", file=sys.stderr)
    except OSError as error:
        where = Path(error.filename) if error.filename else "FOREBAY_HOME"
        print(f"forebay: {where} cannot be used: {error.strerror}.", file=sys.stderr)
    else:
        with contextlib.suppress(BrokenPipeError):  # whoever read what we say is gone, and everything is stopped
            return stack.run()
    return 1
