"""Each model's pod: what it is told, what it holds, how long it may load, how a new version comes."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.settings import InferenceSettings
from services.inference.catalogue import NAME, Adapter, parse_adapters, parse_catalogue
from tests.chart.rendering import MODEL, PRESETS, Manifest, containers, model, render

VLLM = {"engine": "vllm", "source": "org/big", "profile": "nvidia-gpu"}


def environment(**values: Any) -> dict[str, str]:
    return render(values=model(**values)).environment(MODEL)


def arguments(**values: Any) -> list[str]:
    return list(render(values=model(**VLLM | values)).container(MODEL)["args"])


def volumes(release_pod: Manifest) -> dict[str, Manifest]:
    return {volume["name"]: volume for volume in release_pod["spec"]["volumes"]}


def strategy(**values: Any) -> dict[str, int]:
    return dict(render(values=model(**values)).one("Deployment", MODEL)["spec"]["strategy"]["rollingUpdate"])


@pytest.mark.parametrize(
    ("values", "catalogue"),
    [
        ({}, {"demo": "bundled"}),
        ({"name": "Org.Model:1"}, {"Org.Model:1": "bundled"}),
        ({"source": "org/model"}, {"demo": "org/model"}),
        ({"source": "org/model", "revision": "0123abc"}, {"demo": "org/model@0123abc"}),
        ({"source": "pvc://weights/models/one"}, {"demo": "/models/models/one"}),
        ({"source": "pvc://weights"}, {"demo": "/models"}),
    ],
)
def test_the_engine_is_told_name_and_source_in_the_words_it_reads(
    values: dict[str, Any], catalogue: dict[str, str]
) -> None:
    assert parse_catalogue(environment(**values)["FOREBAY_MODEL"]) == catalogue


def test_names_that_callers_write_are_names_that_the_engine_takes() -> None:
    for file in PRESETS:
        for deployment in render(file).of_kind("Deployment"):
            assert NAME.fullmatch(deployment["metadata"]["labels"].get("forebay.dev/model", "gateway"))


def test_a_volume_of_weights_is_mounted_for_reading_only() -> None:
    pod = render("ci/volume-source-values.yaml").pod("forebay-model-folder")
    assert volumes(pod)["source"]["persistentVolumeClaim"] == {"claimName": "outside-weights", "readOnly": True}
    (mount,) = [one for one in pod["spec"]["containers"][0]["volumeMounts"] if one["name"] == "source"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/models", True)


def test_limits_are_only_said_where_they_are_set() -> None:
    assert "FOREBAY_CONTEXT_LENGTH" not in environment()
    assert environment(contextLength=4096)["FOREBAY_CONTEXT_LENGTH"] == "4096"
    assert environment(maxBatch=4, maxQueue=0)["FOREBAY_MAX_BATCH"] == "4"


def test_offline_turns_the_hub_off_in_both_engines() -> None:
    assert environment(hub={"offline": True})["FOREBAY_HUB_OFFLINE"] == "true"
    assert "FOREBAY_HUB_OFFLINE" not in environment()
    assert environment(**VLLM, hub={"offline": True})["HF_HUB_OFFLINE"] == "1"


def test_a_hub_token_comes_by_file() -> None:
    release = render("ci/hub-values.yaml")
    assert release.environment("forebay-model-gated")["HF_TOKEN_PATH"] == "/run/secrets/hub/token"
    secret = volumes(release.pod("forebay-model-gated"))["hub"]["secret"]
    assert secret == {"secretName": "outside-hub", "items": [{"key": "hf", "path": "token"}]}


def test_downloads_lie_on_a_claim_or_in_a_folder_that_fits() -> None:
    release = render("ci/hub-values.yaml")
    state = volumes(release.pod("forebay-model-gated"))["state"]
    assert state["persistentVolumeClaim"]["claimName"] == "forebay-model-gated-cache"
    assert release.one("PersistentVolumeClaim", "forebay-model-gated-cache")["spec"]["storageClassName"] == "fast"
    state = volumes(release.pod("forebay-model-offline"))["state"]
    assert state["persistentVolumeClaim"]["claimName"] == "outside-cache"
    assert volumes(render(values=model()).pod(MODEL))["state"]["emptyDir"] == {}
    assert volumes(render(values=model(weightsGiB=8.5)).pod(MODEL))["state"]["emptyDir"] == {"sizeLimit": "19Gi"}


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_the_engine_is_told_how_to_quantise_in_the_words_it_reads(quantization: str) -> None:
    told = environment(quantization=quantization)["FOREBAY_QUANTIZATION"]
    assert InferenceSettings.model_validate({"quantization": told}).quantization == quantization
    assert "FOREBAY_QUANTIZATION" not in environment()


def test_environment_of_ones_own_wins() -> None:
    assert (
        environment(env={"FOREBAY_MAX_BATCH": "7", "OTHER": "x"}).items()
        >= {
            "FOREBAY_MAX_BATCH": "7",
            "OTHER": "x",
        }.items()
    )


class TestSeveralGpus:
    TWO = {"profile": "nvidia-gpu", "resources": {"limits": {"nvidia.com/gpu": 2}}}

    def test_a_model_is_shared_by_all_gpus_of_its_pod_unless_told_otherwise(self) -> None:
        container = render(values=model(**self.TWO)).container(MODEL)
        assert container["command"][:3] == ["torchrun", "--standalone", "--nproc-per-node=2"]
        assert container["command"][-2:] == ["-m", "services.inference"]
        assert "command" not in render(values=model(**self.TWO, tensorParallelSize=1)).container(MODEL)
        assert "command" not in render(values=model()).container(MODEL)

    def test_its_processes_get_as_long_to_end_as_requests_get(self) -> None:
        release = render(values={**model(**self.TWO), "timeouts": {"request": 100}})
        drain = int(release.environment(MODEL)["FOREBAY_SHUTDOWN_GRACE"])
        (told,) = [one for one in release.container(MODEL)["command"] if one.startswith("--shutdown-timeout=")]
        assert drain < int(told.partition("=")[2]) < release.pod(MODEL)["spec"]["terminationGracePeriodSeconds"]

    def test_they_speak_over_shared_memory(self) -> None:
        release = render(values=model(**self.TWO, sharedMemory="3Gi"))
        assert volumes(release.pod(MODEL))["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}
        assert "shm" not in volumes(render(values=model()).pod(MODEL))


def test_adapters_are_named_in_the_words_that_the_engine_reads() -> None:
    told = environment(name="Org.Model:1", adapters={"law": "org/law@v2", "tax": "/models/tax"})
    assert parse_adapters(told["FOREBAY_ADAPTERS"], ["Org.Model:1"]) == {
        "Org.Model:1:law": Adapter("Org.Model:1", "law", "org/law@v2"),
        "Org.Model:1:tax": Adapter("Org.Model:1", "tax", "/models/tax"),
    }
    assert "FOREBAY_ADAPTERS" not in environment()


class TestVllm:
    def test_it_runs_its_own_image_pinned(self) -> None:
        image = render(values=model(**VLLM)).container(MODEL)["image"]
        assert image.startswith("docker.io/vllm/vllm-openai:v")
        digest = render("ci/vllm-values.yaml").container("forebay-model-big")["image"]
        assert digest.startswith("docker.io/vllm/vllm-openai@sha256:")

    def test_it_is_told_all_that_the_values_say(self) -> None:
        assert render("ci/vllm-values.yaml").container("forebay-model-big")["args"] == [
            "--model=/models/big/v1",
            "--served-model-name=org.example:Big-1",
            "--host=0.0.0.0",
            "--port=8000",
            "--dtype=bfloat16",
            "--max-model-len=32768",
            "--quantization=fp8",
            "--tensor-parallel-size=2",
            "--max-num-seqs=32",
            "--enable-prefix-caching",
            '--override-generation-config={"temperature": 0}',
        ]

    def test_what_is_not_set_is_not_said(self) -> None:
        said = arguments()
        assert "--model=org/big" in said
        assert not [one for one in said if one.startswith(("--quantization", "--max-model-len", "--revision"))]
        assert "--revision=v2" in arguments(revision="v2")

    def test_it_uses_every_gpu_it_gets_unless_told_otherwise(self) -> None:
        four = {"limits": {"nvidia.com/gpu": 4}}
        assert "--tensor-parallel-size=1" in arguments()
        assert "--tensor-parallel-size=4" in arguments(resources=four)
        assert "--tensor-parallel-size=2" in arguments(resources=four, tensorParallelSize=2)

    def test_it_is_asked_what_vllm_answers(self) -> None:
        container = render(values=model(**VLLM)).container(MODEL)
        paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
        assert paths == {"/health"}

    def test_it_runs_as_the_user_of_its_image_with_a_writable_home(self) -> None:
        release = render(values=model(**VLLM))
        pod = release.pod(MODEL)["spec"]
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 2000
        mounts = {mount["mountPath"] for mount in release.container(MODEL)["volumeMounts"]}
        assert {"/tmp", "/dev/shm", release.environment(MODEL)["HOME"]} <= mounts

    def test_it_gets_no_settings_of_the_other_engine(self) -> None:
        assert not [name for name in environment(**VLLM) if name.startswith("FOREBAY_")]


class TestLoading:
    @pytest.mark.parametrize(
        ("values", "seconds"),
        [
            ({}, 600),
            ({"weightsGiB": 1}, 150),
            ({"weightsGiB": 66}, 2100),
            ({"weightsGiB": 66, "startupSeconds": 90}, 90),
        ],
    )
    def test_the_startup_probe_waits_as_long_as_the_size_asks_for(self, values: dict[str, Any], seconds: int) -> None:
        release = render(values=model(**values))
        probe = release.container(MODEL)["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == seconds
        assert release.one("Deployment", MODEL)["spec"]["progressDeadlineSeconds"] > seconds

    def test_ready_is_not_alive(self) -> None:
        container = render(values=model()).container(MODEL)
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        liveness = container["livenessProbe"]
        assert liveness["httpGet"]["path"] == "/healthz"
        assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60, "a busy pod is not a dead one"


class TestRollout:
    @pytest.mark.parametrize(
        "values",
        [
            {"profile": "nvidia-gpu"},
            {"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}},
            {"cache": {"size": "1Gi"}},
            {"rollout": "in-place"},
        ],
    )
    def test_a_gpu_or_a_volume_of_its_own_is_freed_first(self, values: dict[str, Any]) -> None:
        assert strategy(**values) == {"maxSurge": 0, "maxUnavailable": 1}

    @pytest.mark.parametrize(
        "values",
        [{}, {"cache": {"size": "1Gi", "accessMode": "ReadWriteMany"}}, {"profile": "nvidia-gpu", "rollout": "surge"}],
    )
    def test_otherwise_the_new_pod_comes_first(self, values: dict[str, Any]) -> None:
        assert strategy(**values) == {"maxSurge": 1, "maxUnavailable": 0}


class TestMap:
    def test_a_profile_stands_between_defaults_and_model(self) -> None:
        values = {
            "modelDefaults": {"maxBatch": 1, "maxQueue": 1, "contextLength": 1024},
            "resourceProfiles": {"mine": {"maxBatch": 2, "maxQueue": 2}},
            **model(profile="mine", maxBatch=3),
        }
        found = render(values=values).environment(MODEL)
        limits = [found[f"FOREBAY_{name}"] for name in ("CONTEXT_LENGTH", "MAX_QUEUE", "MAX_BATCH")]
        assert limits == ["1024", "2", "3"]

    def test_a_second_values_file_changes_one_model_and_leaves_the_others(self) -> None:
        first = render("ci/many-models-values.yaml")
        second = render("ci/many-models-values.yaml", values={"models": {"one": {"maxBatch": 9}}})
        assert second.environment("forebay-model-one")["FOREBAY_MAX_BATCH"] == "9"
        assert second.one("Deployment", "forebay-model-two") == first.one("Deployment", "forebay-model-two")

    def test_a_model_without_pods_is_not_asked_by_the_smoke_test(self) -> None:
        command = render("ci/many-models-values.yaml").one("Pod")["spec"]["containers"][0]["command"]
        assert [word for word in command if "asleep" in word] == []

    def test_a_mig_profile_brings_its_image_node_and_resource(self) -> None:
        release = render("ci/many-models-values.yaml")
        assert release.container("forebay-model-two")["image"].endswith("-cuda")
        assert release.pod("forebay-model-two")["spec"]["nodeSelector"] == {"nvidia.com/mig.strategy": "mixed"}
        limits = release.container("forebay-model-two")["resources"]["limits"]
        assert limits["nvidia.com/mig-1g.10gb"] == 1

    def test_long_names_are_cut_and_stay_apart(self) -> None:
        names = [one["metadata"]["name"] for one in render("ci/long-names-values.yaml").of_kind("Service")]
        assert len(names) == len(set(names)) == 7
        assert max(map(len, names)) <= 63


@pytest.mark.parametrize("file", PRESETS)
def test_every_pod_passes_the_level_restricted(file: str) -> None:
    for name, pod in render(file).pods():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        context = spec["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), name
        assert context["runAsUser"] > 0, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"], name
            assert not container["image"].endswith(":latest"), name
