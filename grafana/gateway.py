"""The dashboard "Gateway": who is held back by what, where requests go, what need not be computed, are the books kept.

A row each; the last two are on who may come in, and on what the gateways need beside pods.
"""

from __future__ import annotations

from typing import Any

from grafana import queries as q
from grafana.alerts import runbook
from grafana.config import Options
from grafana.panels import Json, Query, dashboard, datasource_variable, label_variable, rows, series

UID = "forebay-gateway"
WINDOW = "$__rate_interval"
HERE = (q.GATEWAY, 'namespace=~"$namespace"')
MODEL = 'model=~"$model"'
TENANT = 'tenant=~"$tenant"'


def gateway(options: Options | None = None) -> Json:
    """The whole dashboard."""
    options = options or Options()
    return dashboard(
        UID,
        "Forebay / Gateway",
        "Limits and budgets, routing, recall, the usage ledger. Alerts and their runbooks: docs/runbooks in the "
        "repository.",
        [
            datasource_variable(),
            label_variable("namespace", "Namespace", f"label_values(up{{{q.GATEWAY}}}, namespace)"),
            label_variable(
                "model", "Model", f"label_values({q.select('forebay_gateway_upstreams_ready', *HERE)}, model)"
            ),
            label_variable(
                "tenant", "Tenant", f"label_values({q.select('forebay_gateway_requests_total', *HERE)}, tenant)"
            ),
        ],
        rows(
            (6, _limits()),
            (6, _routing(options)),
            (6, _recall()),
            (6, _books(options)),
            (6, _entrance(options)),
            (6, _surroundings(options)),
        ),
    )


def _rate(metric: str, *matchers: str) -> str:
    return q.rate(f"forebay_gateway_{metric}", WINDOW, *HERE, *matchers)


def _now(how: str, metric: str, *matchers: str, by: str = "") -> str:
    """A gauge of all gateways brought together: `how` is sum or max, of each value of the labels `by`."""
    values = q.select(f"forebay_gateway_{metric}", *HERE, *matchers)
    return f"{how} by ({by}) ({values})" if by else f"{how}({values})"


def _events(title: str, text: str, metric: str, by: str, *matchers: str, unit: str = "reqps", **rest: Any) -> Json:
    """How often something happens, by its labels; stacked, so that the top is all of it."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    queries = [Query(q.total(by, _rate(metric, *matchers)), legend)]
    return series(title, text, queries, unit=unit, stacked=True, **rest)


def _limits() -> list[Json]:
    return [
        _events(
            "Refusals by limit",
            "429 by the limit that was reached, of the caller's key or of its tenant. The caller's own doing: none of "
            "them counts against the service.",
            "refused_total",
            "account, cause",
            TENANT,
        ),
        series(
            "Budgets used",
            "Part of a tenant's budget of the day or month that was used when it last asked; of tokens and money the "
            "one that is nearer its end. At 100 % its requests are refused with 429 insufficient_quota until the day "
            "or month is over.",
            [Query(_now("max", "budget_used_ratio", TENANT, by="tenant, period"), "{{tenant}} {{period}}")],
            unit="percentunit",
        ),
        series(
            "Cost by tenant",
            "What an hour at the pace of now costs, in the currency that prices are set in. Nothing where no model has "
            "a price.",
            [Query(f"3600 * {q.total('tenant', _rate('cost_total', MODEL, TENANT))}", "{{tenant}}")],
            unit="short",
            stacked=True,
        ),
        _events(
            "Requests by tenant",
            "Generation requests that were admitted, however they ended.",
            "requests_total",
            "tenant",
            MODEL,
            TENANT,
        ),
    ]


def _routing(options: Options) -> list[Json]:
    return [
        _events(
            "Pods chosen, by policy",
            "session and prefix: the pod that has the beginning of the conversation in its KV cache. spilled: that one "
            "had too much to do. least-loaded: there was no beginning to look for. only: there was no other.",
            "upstream_choices_total",
            "policy",
            MODEL,
        ),
        series(
            "Circuits",
            "Open now: ready pods that get no requests for a while, because they failed or were slow. Opened: how "
            "often that happened, an hour.",
            [
                Query(_now("max", "circuits_open", MODEL, by="model"), "{{model}} open now"),
                Query(f"3600 * {q.total('cause', _rate('circuits_opened_total'))}", "opened for {{cause}}"),
            ],
            unit="short",
            runbook=runbook("ForebayCircuitOpen", options),
        ),
        series(
            "Retries and resumes",
            "Retried: sent to another pod before anything went to the client. Resumed: streams that went on at another "
            "pod after theirs was lost.",
            [
                Query(q.total("model", _rate("upstream_retries_total", MODEL)), "{{model}} retried"),
                Query(q.total("model", _rate("streams_resumed_total", MODEL)), "{{model}} resumed"),
            ],
            unit="reqps",
            runbook=runbook("ForebayRetriesHigh", options),
        ),
        series(
            "Requests held",
            "Held: requests that wait because no pod is ready for their model. Ready: its pods, as the gateways see "
            "them.",
            [
                Query(_now("sum", "requests_held", MODEL, by="model"), "{{model}} held"),
                Query(_now("max", "upstreams_ready", MODEL, by="model"), "{{model}} ready"),
            ],
            unit="short",
            decimals=0,
            runbook=runbook("ForebayRequestsHeld", options),
        ),
    ]


def _recall() -> list[Json]:
    ended = q.total("model", _rate("requests_total", MODEL, TENANT))
    cached = q.total("model", _rate("requests_total", MODEL, TENANT, 'outcome="cached"'))
    return [
        _events(
            "Tokens saved by source",
            "Tokens a second that no pod had to compute. hit: response cache. coalesced: an identical request at the "
            "same time. replayed: asked for again by Idempotency-Key or Last-Event-ID. semantic: nearly the same "
            "question. resumed: what another run had generated.",
            "saved_tokens_total",
            "source",
            MODEL,
            TENANT,
            unit="short",
        ),
        series(
            "Money saved",
            "What an hour at the pace of now costs, and what it would cost besides if all answers were computed.",
            [
                Query(f"3600 * sum({_rate('cost_total', MODEL, TENANT)})", "cost"),
                Query(f"3600 * sum({_rate('cost_saved_total', MODEL, TENANT)})", "saved"),
            ],
            unit="short",
        ),
        series(
            "Requests answered without a pod",
            "Part of the requests of a model that ended as cached, whatever their answer was taken from.",
            [Query(f"{cached} / {ended}", "{{model}}")],
            unit="percentunit",
            max=1,
        ),
        _events(
            "Semantic look-ups",
            "Questions for which a nearly equal one was looked for. failed: the embedding service gave no answer in "
            "time, and a pod answered. Nothing where the semantic cache is off.",
            "semantic_lookups_total",
            "result",
        ),
    ]


def _books(options: Options) -> list[Json]:
    return [
        series(
            "Ledger: how far behind",
            "Age of the call that has waited longest for its row in SQL.",
            [Query(_now("max", "ledger_oldest_seconds"), "oldest")],
            unit="s",
            runbook=runbook("ForebayLedgerBehind", options),
        ),
        series(
            "Ledger: calls without a row",
            "In Redis: settled, and waiting for SQL. In memory: neither Redis nor SQL took them.",
            [
                Query(_now("max", "ledger_entries_waiting"), "in Redis"),
                Query(_now("sum", "ledger_spool_entries"), "in memory"),
            ],
            unit="short",
            decimals=0,
            runbook=runbook("ForebayLedgerInMemory", options),
        ),
        series(
            "Ledger: rows",
            "Written: rows that SQL got. Past Redis: calls that went to SQL from a gateway's memory. Lost: calls that "
            "only the log has; must be zero.",
            [
                Query(f"sum({_rate('ledger_written_total')})", "written"),
                Query(f"sum({_rate('ledger_spooled_total')})", "past Redis"),
                Query(f"sum({_rate('ledger_lost_total')})", "lost"),
            ],
            unit="ops",
            runbook=runbook("ForebayLedgerLost", options),
        ),
        _events(
            "Calls of gateways that died",
            "Settled by another gateway. orphaned: a pod knew the counts. gateway_lost: none did. known: the ledger "
            "had the call already.",
            "orphans_settled_total",
            "outcome",
            unit="ops",
        ),
    ]


def _entrance(options: Options) -> list[Json]:
    return [
        _events(
            "Log-ins",
            "wrong: name or password. throttled: after too many of these for one user name or address. Many at once "
            "are somebody who guesses.",
            "logins_total",
            "outcome",
            unit="ops",
        ),
        _events(
            "Moderation",
            "Prompts that the moderation model was asked about. failed: no answer in time. Nothing where none is "
            "named.",
            "moderations_total",
            "result",
            runbook=runbook("ForebayModerationFailing", options),
        ),
        series(
            "Streams open",
            "Streams that the gateways relay now.",
            [Query(_now("sum", "streams_open"), "open")],
            unit="short",
            decimals=0,
        ),
    ]


def _surroundings(options: Options) -> list[Json]:
    heard = "kubernetes_watch_last_success_timestamp_seconds"
    return [
        series(
            "Database and Redis",
            "1 while a gateway cannot reach it. Without the database, keys that are known go on for a while and others "
            "get 503; without Redis, limits are held by each process and nothing is answered from a cache.",
            [
                Query(_now("max", "database_down"), "database down"),
                Query(_now("max", "redis_down"), "Redis down"),
            ],
            unit="none",
            max=1,
            decimals=0,
            runbook=runbook("ForebayDatabaseDown", options),
        ),
        series(
            "Kubernetes: last heard",
            "Time since the API server last said which pods there are, of the gateway that has waited longest. A "
            "minute or less when all is well. Nothing where pods are not found by a watch.",
            [Query(f"time() - {_now('min', heard, by='watched_namespace')}", "{{watched_namespace}}")],
            unit="s",
            runbook=runbook("ForebayWatchStale", options),
        ),
    ]
