"""checkov on the production preset: whatever it finds is mended, or stands here with the reason why not.

Without its vendor's service checkov knows no severities, so every finding counts.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tests.chart.rendering import TOOLS, text_of

MODELS = {"forebay-model-qwen3-32b", "forebay-model-qwen3-8b"}
EVERYWHERE = {*MODELS, "forebay-gateway", "forebay-cache", "forebay-secrets", "forebay-smoke-test"}

ACCEPTED = {
    "CKV_K8S_8": ({"forebay-smoke-test"}, "A pod that ends by itself has no use for a liveness probe."),
    "CKV_K8S_9": ({"forebay-smoke-test"}, "Nobody sends requests to the pod that asks."),
    "CKV_K8S_11": (
        MODELS,
        "A CPU limit stalls an engine's threads in the middle of a step, and with them every request of the batch. The "
        "request keeps its share; who wants a limit sets one in resourceProfiles.",
    ),
    "CKV_K8S_15": (
        EVERYWHERE,
        "Tags are versions and `latest` is refused, so an image that is there is the right one; a node without its "
        "registry can still start a pod.",
    ),
    "CKV_K8S_40": ({"forebay-model-qwen3-32b"}, "2000 is the user that vLLM's image has a name and a home for."),
    "CKV_K8S_43": (
        EVERYWHERE,
        "Which digest is whose registry's matter: each `image.digest` takes one, and wins over the tag.",
    ),
}
"""Findings that stay, the workloads that have them, and why."""


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    file: Path = tmp_path_factory.mktemp("checkov") / "production.yaml"
    file.write_text(text_of("values-production.yaml"))
    options = ["--framework=kubernetes", "--skip-download", "--compact", "--quiet", "--output=json"]
    done = subprocess.run(
        [str(TOOLS / "checkov"), "--file", str(file), *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(file.parent)},
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 400
    found: dict[str, set[str]] = defaultdict(set)
    for check in report["results"]["failed_checks"]:
        # Kind, namespace and name; a Job's name ends with its hash.
        name = check["resource"].split(".")[2]
        found[check["check_id"]].add("forebay-secrets" if name.startswith("forebay-secrets-") else name)
    return dict(found)


@pytest.mark.tools("checkov")
def test_every_finding_is_mended_or_has_its_reason(findings: dict[str, set[str]]) -> None:
    assert findings == {check: workloads for check, (workloads, _) in ACCEPTED.items()}
