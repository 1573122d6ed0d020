"""A real Prometheus that scrapes a real stack, with the scrape configuration and the rules that are shipped."""

from __future__ import annotations

import json
import math
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from grafana.config import Options
from grafana.generate import ROOT, rule_file
from tests.e2e.running import HANG, Stack

SCRAPE_CONFIG = ROOT / "grafana" / "prometheus" / "prometheus.yml"
OPTIONS = Options(slow_interval="1s", waits={"ForebayRedisDown": "2s"})
"""What is faster here than in the rules that are shipped."""


class Prometheus:
    """A running server. Everything it writes lies in `folder`."""

    def __init__(self, folder: Path, port: int, stack: Stack) -> None:
        (folder / "forebay.yaml").write_text(rule_file(OPTIONS))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(scrape_config(stack, folder)))
        self.url = f"http://127.0.0.1:{port}"
        self._log = (folder / "log").open("w+")
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def ready(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=HANG):
                return True
        except OSError:
            return False

    def query(self, expression: str) -> list[float]:
        """The numbers that it yields now; what is no number, as 0/0, is left out.

        Raises:
            urllib.error.HTTPError: 400, the expression is wrong.
        """
        answer = self._get("query", query=expression)
        values = [float(sample["value"][1]) for sample in answer["result"]]
        return [value for value in values if not math.isnan(value)]

    def label_values(self, selector: str, label: str) -> list[str]:
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return found

    def alerts(self) -> dict[str, str]:
        """The state of each alert that is pending or firing, by its name."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self._get("alerts")["alerts"]}

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return found

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(HANG)
        self._log.close()

    def _get(self, path: str, **query: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=HANG) as answer:
            return json.load(answer)["data"]


def scrape_config(stack: Stack, folder: Path) -> dict[str, Any]:
    """The shipped configuration, with the addresses of this stack where names of containers stand, and in a hurry."""
    config: dict[str, Any] = yaml.safe_load(SCRAPE_CONFIG.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder / "forebay.yaml")]
    roles = {"forebay-gateway": "gateway", "forebay-inference": "pod"}
    for job in config["scrape_configs"]:
        rows = [row for row in stack.up.status()["processes"] if row["role"] == roles[job["job_name"]]]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [urllib.parse.urlsplit(row["metrics_url"]).netloc for row in rows]}]
    return config
