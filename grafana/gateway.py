"""The dashboard "Gateway": who is held back by what, where requests go, what need not be computed, are the books kept.

A row each; the last is on who may come in, and on what the gateways need beside pods.
"""

from __future__ import annotations

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
            (6, [_refused(), _budgets(), _cost(), _usage()]),
            (6, [_choices(), _circuits(options), _second_pods(options), _held(options)]),
            (6, [_saved_tokens(), _saved_money(), _recalled(), _semantic()]),
            (6, [_behind(options), _waiting(options), _written(options), _orphans()]),
            (6, [_logins(), _stores(options), _moderations(options), _streams()]),
        ),
    )


def _per_second(metric: str, by: str, *matchers: str) -> str:
    return q.total(by, q.rate(f"forebay_gateway_{metric}", WINDOW, *HERE, *matchers))


def _refused() -> Json:
    return series(
        "Refusals by limit",
        "429 by the limit that was reached, of the caller's key or of its tenant. The caller's own doing: none of them "
        "counts against the service.",
        [Query(_per_second("refused_total", "account, cause", TENANT), "{{account}} {{cause}}")],
        unit="reqps",
        stacked=True,
    )


def _budgets() -> Json:
    used = q.select("forebay_gateway_budget_used_ratio", *HERE, TENANT)
    return series(
        "Budgets used",
        "Part of a tenant's budget of the day or month that was used when it last asked; of tokens and money the one "
        "that is nearer its end. At 100 % its requests are refused with 429 insufficient_quota until the day or month "
        "is over.",
        [Query(f"max by (tenant, period) ({used})", "{{tenant}} {{period}}")],
        unit="percentunit",
    )


def _cost() -> Json:
    return series(
        "Cost by tenant",
        "What an hour at the pace of now costs, in the currency that prices are set in. Nothing where no model has a "
        "price.",
        [Query(f"3600 * {_per_second('cost_total', 'tenant', MODEL, TENANT)}", "{{tenant}}")],
        unit="short",
        stacked=True,
    )


def _usage() -> Json:
    return series(
        "Requests by tenant",
        "Generation requests that were admitted, however they ended.",
        [Query(_per_second("requests_total", "tenant", MODEL, TENANT), "{{tenant}}")],
        unit="reqps",
        stacked=True,
    )


def _choices() -> Json:
    return series(
        "Pods chosen, by policy",
        "session and prefix: the pod that has the beginning of the conversation in its KV cache. spilled: that one had "
        "too much to do. least-loaded: there was no beginning to look for. only: there was no other.",
        [Query(_per_second("upstream_choices_total", "policy", MODEL), "{{policy}}")],
        unit="reqps",
        stacked=True,
    )


def _circuits(options: Options) -> Json:
    opened = q.select("forebay_gateway_circuits_open", *HERE, MODEL)
    return series(
        "Circuits",
        "Open now: ready pods that get no requests for a while, because they failed or were slow. Opened: how often "
        "that happened, an hour.",
        [
            Query(f"max by (model) ({opened})", "{{model}} open now"),
            Query(f"3600 * {_per_second('circuits_opened_total', 'cause')}", "opened for {{cause}}"),
        ],
        unit="short",
        runbook=runbook("ForebayCircuitOpen", options),
    )


def _second_pods(options: Options) -> Json:
    return series(
        "Retries and resumes",
        "Retried: sent to another pod before anything went to the client. Resumed: streams that went on at another pod "
        "after theirs was lost.",
        [
            Query(_per_second("upstream_retries_total", "model", MODEL), "{{model}} retried"),
            Query(_per_second("streams_resumed_total", "model", MODEL), "{{model}} resumed"),
        ],
        unit="reqps",
        runbook=runbook("ForebayRetriesHigh", options),
    )


def _held(options: Options) -> Json:
    held = q.select("forebay_gateway_requests_held", *HERE, MODEL)
    ready = q.select("forebay_gateway_upstreams_ready", *HERE, MODEL)
    return series(
        "Requests held",
        "Held: requests that wait because no pod is ready for their model. Ready: its pods, as the gateways see them.",
        [Query(f"sum by (model) ({held})", "{{model}} held"), Query(f"max by (model) ({ready})", "{{model}} ready")],
        unit="short",
        decimals=0,
        runbook=runbook("ForebayRequestsHeld", options),
    )


def _saved_tokens() -> Json:
    return series(
        "Tokens saved by source",
        "Tokens a second that no pod had to compute. hit: response cache. coalesced: an identical request at the same "
        "time. replayed: asked for again by Idempotency-Key or Last-Event-ID. semantic: nearly the same question. "
        "resumed: what another run had generated.",
        [Query(_per_second("saved_tokens_total", "source", MODEL, TENANT), "{{source}}")],
        unit="short",
        stacked=True,
    )


def _saved_money() -> Json:
    return series(
        "Money saved",
        "What an hour at the pace of now costs, and what it would cost besides if all answers were computed.",
        [
            Query(f"3600 * sum({q.rate('forebay_gateway_cost_total', WINDOW, *HERE, MODEL, TENANT)})", "cost"),
            Query(f"3600 * sum({q.rate('forebay_gateway_cost_saved_total', WINDOW, *HERE, MODEL, TENANT)})", "saved"),
        ],
        unit="short",
    )


def _recalled() -> Json:
    cached = q.rate("forebay_gateway_requests_total", WINDOW, *HERE, MODEL, TENANT, 'outcome="cached"')
    ended = q.rate("forebay_gateway_requests_total", WINDOW, *HERE, MODEL, TENANT)
    return series(
        "Requests answered without a pod",
        "Part of the requests of a model that ended as cached, whatever their answer was taken from.",
        [Query(f"{q.total('model', cached)} / {q.total('model', ended)}", "{{model}}")],
        unit="percentunit",
        max=1,
    )


def _semantic() -> Json:
    return series(
        "Semantic look-ups",
        "Questions for which a nearly equal one was looked for. failed: the embedding service gave no answer in time, "
        "and a pod answered. Nothing where the semantic cache is off.",
        [Query(_per_second("semantic_lookups_total", "result"), "{{result}}")],
        unit="reqps",
        stacked=True,
    )


def _behind(options: Options) -> Json:
    return series(
        "Ledger: how far behind",
        "Age of the call that has waited longest for its row in SQL.",
        [Query(f"max({q.select('forebay_gateway_ledger_oldest_seconds', *HERE)})", "oldest")],
        unit="s",
        runbook=runbook("ForebayLedgerBehind", options),
    )


def _waiting(options: Options) -> Json:
    return series(
        "Ledger: calls without a row",
        "In Redis: settled, and waiting for SQL. In memory: neither Redis nor SQL took them.",
        [
            Query(f"max({q.select('forebay_gateway_ledger_entries_waiting', *HERE)})", "in Redis"),
            Query(f"sum({q.select('forebay_gateway_ledger_spool_entries', *HERE)})", "in memory"),
        ],
        unit="short",
        decimals=0,
        runbook=runbook("ForebayLedgerInMemory", options),
    )


def _written(options: Options) -> Json:
    return series(
        "Ledger: rows",
        "Written: rows that SQL got. Past Redis: calls that went to SQL from a gateway's memory. Lost: calls that only "
        "the log has; must be zero.",
        [
            Query(f"sum({q.rate('forebay_gateway_ledger_written_total', WINDOW, *HERE)})", "written"),
            Query(f"sum({q.rate('forebay_gateway_ledger_spooled_total', WINDOW, *HERE)})", "past Redis"),
            Query(f"sum({q.rate('forebay_gateway_ledger_lost_total', WINDOW, *HERE)})", "lost"),
        ],
        unit="ops",
        runbook=runbook("ForebayLedgerLost", options),
    )


def _orphans() -> Json:
    return series(
        "Calls of gateways that died",
        "Settled by another gateway. orphaned: a pod knew the counts. gateway_lost: none did. known: the ledger had "
        "the call already.",
        [Query(_per_second("orphans_settled_total", "outcome"), "{{outcome}}")],
        unit="ops",
        stacked=True,
    )


def _logins() -> Json:
    return series(
        "Log-ins",
        "wrong: name or password. throttled: after too many of these for one user name or address. Many at once are "
        "somebody who guesses.",
        [Query(_per_second("logins_total", "outcome"), "{{outcome}}")],
        unit="ops",
        stacked=True,
    )


def _stores(options: Options) -> Json:
    return series(
        "Database and Redis",
        "1 while a gateway cannot reach it. Without the database, keys that are known go on for a while and others get "
        "503; without Redis, limits are held by each process and nothing is answered from a cache.",
        [
            Query(f"max({q.select('forebay_gateway_database_down', *HERE)})", "database down"),
            Query(f"max({q.select('forebay_gateway_redis_down', *HERE)})", "Redis down"),
        ],
        unit="none",
        max=1,
        decimals=0,
        runbook=runbook("ForebayDatabaseDown", options),
    )


def _moderations(options: Options) -> Json:
    return series(
        "Moderation",
        "Prompts that the moderation model was asked about. failed: no answer in time. Nothing where none is named.",
        [Query(_per_second("moderations_total", "result"), "{{result}}")],
        unit="reqps",
        stacked=True,
        runbook=runbook("ForebayModerationFailing", options),
    )


def _streams() -> Json:
    return series(
        "Streams open",
        "Streams that the gateways relay now.",
        [Query(f"sum({q.select('forebay_gateway_streams_open', *HERE)})", "open")],
        unit="short",
        decimals=0,
    )
