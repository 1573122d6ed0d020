"""One value sets the whole path, and each step outlasts the one before it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.settings import GatewaySettings
from services.gateway.drain import CUT_IN, longest
from tests.chart.rendering import GATEWAY, MODEL, Refused, Release, model, render

EXPOSED = {
    "ingress": {"enabled": True, "hosts": ["llm.example.com"]},
    "route": {"enabled": True, "parentRefs": [{"name": "public"}]},
}


def with_timeouts(**timeouts: Any) -> Release:
    return render(values={**model(), **EXPOSED, "timeouts": timeouts})


def ladder(release: Release) -> dict[str, int]:
    """The steps, each from where it takes effect."""
    gateway, engine = release.environment(GATEWAY), release.environment(MODEL)
    pod = release.pod(MODEL)["spec"]
    assert "lifecycle" not in release.container(GATEWAY), "it waits after SIGTERM, by FOREBAY_DRAIN_DELAY"
    annotations = release.one("Ingress")["metadata"]["annotations"]
    sleep = release.container(MODEL).get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})["preStop"]["sleep"]
    assert gateway["FOREBAY_SHUTDOWN_GRACE"] == engine["FOREBAY_SHUTDOWN_GRACE"]
    assert int(gateway["FOREBAY_DRAIN_DELAY"]) == sleep["seconds"]
    assert release.pod(GATEWAY)["spec"]["terminationGracePeriodSeconds"] == pod["terminationGracePeriodSeconds"]
    return {
        "engine": int(engine["FOREBAY_REQUEST_TIMEOUT"]),
        "request": int(gateway["FOREBAY_REQUEST_TIMEOUT"]),
        "proxy": int(annotations["nginx.org/proxy-read-timeout"].removesuffix("s")),
        "connect": int(annotations["nginx.org/proxy-connect-timeout"].removesuffix("s")),
        "drain": int(engine["FOREBAY_SHUTDOWN_GRACE"]),
        "preStop": sleep["seconds"],
        "termination": pod["terminationGracePeriodSeconds"],
    }


def increases(steps: dict[str, int]) -> bool:
    return (
        steps["engine"] <= steps["request"] < min(steps["proxy"], steps["drain"])
        and steps["connect"] < steps["request"]
        and steps["preStop"] + steps["drain"] + CUT_IN <= steps["termination"]
    )


@pytest.mark.parametrize("request_seconds", [6, 60, 300, 3600])
def test_one_value_sets_every_step(request_seconds: int) -> None:
    steps = ladder(with_timeouts(request=request_seconds))
    assert increases(steps)
    assert steps["engine"] == steps["request"] == request_seconds


@pytest.mark.parametrize("timeouts", [{}, {"request": 300}, {"preStop": 30}, {"termination": 75}])
def test_a_gateway_that_ends_is_not_killed_before_it_is_done(
    timeouts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = with_timeouts(**timeouts)
    for variable, value in release.environment(GATEWAY).items():
        if not variable.endswith("_FILE"):
            monkeypatch.setenv(variable, value)
    for name in ("JWT", "KEY"):
        monkeypatch.setenv(f"FOREBAY_{name}_SECRET", "x" * 32)
    assert longest(GatewaySettings()) <= release.pod(GATEWAY)["spec"]["terminationGracePeriodSeconds"]


def test_every_step_can_be_set_apart() -> None:
    given_steps = {
        "request": 120, "engine": 110, "proxy": 150, "connect": 3, "drain": 130, "preStop": 0, "termination": 200,
    }  # fmt: skip
    assert ladder(render("ci/timeouts-values.yaml")) == given_steps


@pytest.mark.parametrize(
    ("timeouts", "says"),
    [
        ({"engine": 61}, "timeouts.engine (61 s) is above timeouts.request (60 s)"),
        ({"proxy": 60}, "timeouts.proxy (60 s) must be above timeouts.request (60 s)"),
        ({"connect": 60}, "timeouts.connect (60 s) must be below timeouts.request (60 s)"),
        ({"drain": 60}, "timeouts.drain (60 s) must be above timeouts.request (60 s)"),
        (
            {"termination": 74},
            "timeouts.termination (74 s) must be 5 s or more above preStop and drain together (70 s)",
        ),
        ({"preStop": 20, "termination": 80}, "must be 5 s or more above preStop and drain together (85 s)"),
        ({"request": 300, "proxy": 70}, "timeouts.proxy (70 s) must be above timeouts.request (300 s)"),
    ],
)
def test_a_ladder_that_does_not_increase_is_refused_in_a_sentence(timeouts: dict[str, int], says: str) -> None:
    with pytest.raises(Refused) as refused:
        with_timeouts(**timeouts)
    assert says in str(refused.value)


SECONDS = st.integers(1, 40)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    timeouts=st.fixed_dictionaries(
        {"request": SECONDS, "connect": SECONDS, "preStop": st.integers(0, 10)},
        optional={"engine": SECONDS, "proxy": SECONDS, "drain": SECONDS, "termination": SECONDS},
    )
)
def test_whatever_is_set_the_ladder_increases_or_nothing_is_rendered(timeouts: dict[str, int]) -> None:
    try:
        steps = ladder(with_timeouts(**timeouts))
    except Refused as refused:
        assert "timeouts." in str(refused)  # noqa: PT017
    else:
        assert increases(steps)
        assert timeouts.items() <= steps.items()


def test_f5s_controller_gets_its_own_annotations() -> None:
    annotations = render("ci/ingress-nginx-values.yaml").one("Ingress")["metadata"]["annotations"]
    assert annotations == {
        "nginx.org/proxy-connect-timeout": "5s",
        "nginx.org/proxy-read-timeout": "70s",
        "nginx.org/proxy-send-timeout": "70s",
        "nginx.org/proxy-buffering": "false",
        "nginx.org/client-max-body-size": "2930k",  # never below gateway.maxBodyBytes, or nginx refuses for it
    }


def test_the_communitys_controller_gets_its_own_and_what_the_values_say_wins() -> None:
    annotations = render("ci/ingress-community-values.yaml").one("Ingress")["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io"
    assert annotations == {
        f"{prefix}/proxy-connect-timeout": "5",
        f"{prefix}/proxy-read-timeout": "310",
        f"{prefix}/proxy-send-timeout": "310",
        f"{prefix}/proxy-buffering": "off",
        f"{prefix}/proxy-body-size": "8m",
        f"{prefix}/enable-access-log": "false",
    }


def test_a_controller_without_a_preset_gets_no_annotations() -> None:
    assert "annotations" not in render("ci/ingress-other-values.yaml").one("Ingress")["metadata"]


def test_a_route_leaves_streams_to_the_gateway_and_limits_the_rest() -> None:
    streams, rest = with_timeouts(request=60).one("HTTPRoute")["spec"]["rules"]
    assert {match["path"]["value"] for match in streams["matches"]} == {
        "/v1/chat/completions", "/v1/completions", "/stream",
    }  # fmt: skip
    assert streams["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert rest["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    assert rest["timeouts"] == {"request": "70s", "backendRequest": "70s"}
