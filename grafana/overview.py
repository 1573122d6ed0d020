"""The dashboard "Service overview": is the service well, on one screen.

The first row answers yes or no, the second is what callers feel, the third what the pods do, the fourth why.
"""

from __future__ import annotations

from grafana import queries as q
from grafana.alerts import runbook
from grafana.config import AVAILABILITY_TARGET, PERIOD, TTFT_SECONDS, TTFT_TARGET, Options
from grafana.panels import Json, Query, dashboard, datasource_variable, label_variable, rows, series, stat
from grafana.records import AVAILABILITY

UID = "forebay-overview"
WINDOW = "$__rate_interval"
NAMESPACE = 'namespace=~"$namespace"'
MODEL = 'model=~"$model"'
POD = 'pod=~"$pod"'
AT_GATEWAY = (q.GATEWAY, NAMESPACE, MODEL)
IN_PODS = (q.INFERENCE, NAMESPACE, MODEL, POD)
QUANTILES = (0.5, 0.95, 0.99)


def overview(options: Options | None = None) -> Json:
    """The whole dashboard."""
    options = options or Options()
    return dashboard(
        UID,
        "Forebay / Service overview",
        "Is the service well? Alerts and their runbooks: docs/runbooks in the repository.",
        [
            datasource_variable(),
            label_variable("namespace", "Namespace", f"label_values(up{{{q.GATEWAY}}}, namespace)"),
            label_variable(
                "model", "Model", f"label_values({q.select('forebay_gateway_upstreams_ready', NAMESPACE)}, model)"
            ),
            label_variable("pod", "Inference pod", f"label_values({q.select('up', q.INFERENCE, NAMESPACE)}, pod)"),
        ],
        rows(
            (3, _verdict(options)),
            (6, _callers(options)),
            (6, _pods()),
            (6, _reasons(options)),
        ),
    )


def _verdict(options: Options) -> list[Json]:
    burnt = q.select(f"{AVAILABILITY}{PERIOD}", NAMESPACE)
    return [
        stat(
            "Availability",
            f"Part of the requests of the last {PERIOD} that did not fail through the service's fault: no 5xx, no "
            f"time-out, no 429 because the pods were full. A caller's own 429 is not a failure. The objective is "
            f"{AVAILABILITY_TARGET * 100:g} %.",
            [Query(f"1 - max({burnt} * {1 - AVAILABILITY_TARGET:.6g})", "")],
            unit="percentunit",
            decimals=3,
            steps={"red": None, "green": AVAILABILITY_TARGET},
        ),
        stat(
            "Error budget left",
            f"Part of the failures which the objective allows over {PERIOD} that is still unused; below zero, the "
            "objective is missed.",
            [Query(f"1 - max({burnt})", "")],
            unit="percentunit",
            decimals=1,
            steps={"red": None, "orange": 0.1, "green": 0.5},
            runbook=runbook("ForebayErrorBudgetBurn", options),
        ),
        stat(
            "Burn rate, 1 h",
            "How many times faster than allowed the error budget burnt over the last hour. At 1 it lasts exactly for "
            "its period; at 14.4 a fiftieth of it is gone within the hour, and somebody is paged.",
            [Query(f"max({q.select(f'{AVAILABILITY}1h', NAMESPACE)})", "")],
            unit="short",
            decimals=2,
            steps={"green": None, "orange": 1, "red": 14.4},
            runbook=runbook("ForebayErrorBudgetBurn", options),
        ),
        stat(
            "Requests",
            "Generation requests a second that were admitted, however they ended.",
            [Query(f"sum({q.rate('forebay_gateway_requests_total', WINDOW, *AT_GATEWAY)})", "")],
            unit="reqps",
            decimals=2,
        ),
        stat(
            "Ready pods",
            "The model that has the fewest: pods that a gateway would send its requests to now.",
            [Query(f"min(max by (namespace, model) ({_upstreams_ready()}))", "")],
            unit="none",
            steps={"red": None, "green": 1},
            runbook=runbook("ForebayNoReadyPod", options),
        ),
        stat(
            "Redis",
            "Down: the response cache is off, and each gateway process holds the limits by itself.",
            [Query(f"max({q.select('forebay_gateway_redis_down', q.GATEWAY, NAMESPACE)})", "")],
            unit="none",
            steps={"green": None, "red": 1},
            mappings=[{"type": "value", "options": {"0": {"text": "up"}, "1": {"text": "down"}}}],
            runbook=runbook("ForebayRedisDown", options),
        ),
    ]


def _callers(options: Options) -> list[Json]:
    ended = q.rate("forebay_gateway_requests_total", WINDOW, *AT_GATEWAY)
    return [
        series(
            "Requests by model and outcome",
            "Generation requests at the gateways by how they ended. cached: answered without a pod; client_gone: the "
            "caller hung up.",
            [Query(q.total("model, outcome", ended), "{{model}} {{outcome}}")],
            unit="reqps",
            stacked=True,
        ),
        series(
            "Time to first token",
            f"From the request's arrival at the gateway to its first token, of streams. The objective: "
            f"{TTFT_TARGET * 100:g} % within {TTFT_SECONDS:g} s.",
            _quantiles(q.TTFT, AT_GATEWAY),
            unit="s",
            runbook=runbook("ForebayTTFTBudgetBurn", options),
        ),
        series(
            "Duration of requests, p95",
            "From the first byte of the request at the gateway to the last byte of the answer; grows with the length "
            "of the answers.",
            [Query(q.quantile(0.95, "model", q.DURATION, WINDOW, *AT_GATEWAY), "{{model}}")],
            unit="s",
        ),
    ]


def _pods() -> list[Json]:
    usage = q.select("forebay_engine_kv_cache_usage_ratio", *IN_PODS)
    return [
        series(
            "Time per output token",
            "Time between two tokens of the same request after the first, in the pods. Grows with the batch.",
            _quantiles(q.TOKEN_TIME, IN_PODS),
            unit="s",
        ),
        series(
            "Tokens per second",
            "Tokens that the pods computed: of prompts (prefill) and of answers (decode).",
            [
                Query(f"sum({q.rate('forebay_engine_prompt_tokens_total', WINDOW, *IN_PODS)})", "prompt"),
                Query(f"sum({q.rate('forebay_engine_generated_tokens_total', WINDOW, *IN_PODS)})", "generated"),
            ],
            unit="short",
        ),
        series(
            "KV cache in use",
            "Part of a pod's KV cache blocks that requests hold. Near 100 % new requests wait although the batch "
            "has room.",
            [Query(f"max by (model, pod) ({usage})", "{{pod}} {{model}}")],
            unit="percentunit",
            max=1,
        ),
    ]


def _reasons(options: Options) -> list[Json]:
    desired = q.select("kube_deployment_spec_replicas", NAMESPACE, 'deployment=~".*-model-.*"')
    refused = q.rate("forebay_gateway_refused_total", WINDOW, q.GATEWAY, NAMESPACE)
    broken = q.rate("forebay_gateway_requests_total", WINDOW, *AT_GATEWAY, f'outcome=~"{q.BROKEN}"')
    return [
        series(
            "Requests running and waiting",
            "In the running batches, and in the queues before them.",
            [
                Query(f"sum({q.select('forebay_engine_requests_running', *IN_PODS)})", "running"),
                Query(f"sum({q.select('forebay_engine_requests_waiting', *IN_PODS)})", "waiting"),
            ],
            unit="short",
            runbook=runbook("ForebayQueueGrowing", options),
        ),
        series(
            "Ready pods of desired",
            "Ready: as the gateways see it. Scraped: inference pods that answer Prometheus, also those that still "
            "load. Desired: replicas of the models' Deployments, where kube-state-metrics runs.",
            [
                Query(f"max by (model) ({_upstreams_ready()})", "{{model}} ready"),
                Query(f"sum({q.select('up', q.INFERENCE, NAMESPACE)})", "scraped"),
                Query(f"sum({desired})", "desired", optional=True),
            ],
            unit="none",
            decimals=0,
            runbook=runbook("ForebayNoReadyPod", options),
        ),
        series(
            "429 and 5xx by reason",
            "429, own limit: a limit or budget of the caller's key or tenant is used up (of all models together). "
            "Against the service: overloaded (429, all pods full), time-out, pod lost or refusing, error in the "
            "gateway.",
            [
                Query(q.total("cause", refused), "429 own limit: {{cause}}"),
                Query(q.total("outcome", broken), "{{outcome}}"),
            ],
            unit="reqps",
            stacked=True,
            runbook=runbook("ForebayErrorBudgetBurn", options),
        ),
    ]


def _upstreams_ready() -> str:
    return q.select("forebay_gateway_upstreams_ready", *AT_GATEWAY)


def _quantiles(metric: str, matchers: tuple[str, ...]) -> list[Query]:
    return [Query(q.quantile(p, "model", metric, WINDOW, *matchers), f"{{{{model}}}} p{p * 100:g}") for p in QUANTILES]
