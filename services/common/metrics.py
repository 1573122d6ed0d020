"""The one registry of metrics: every name that a dashboard, a rule or a page may use is declared here.

Names follow OpenTelemetry's GenAI conventions where they exist (`gen_ai_…`), else `forebay_gateway_…` and
`forebay_engine_…` in base units. Labels are bounded: a model that is served, a tenant, an outcome; never a key or a raw
string from a request. Must be imported after `PROMETHEUS_MULTIPROC_DIR` is set (see `services.web.serve`).
"""

from __future__ import annotations

from functools import cache, partial

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
TOKEN_TIME_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Those that are labels; a client may call its method anything."""


def _found_fast(metrics: object) -> None:
    """Has each metric remember the children that `labels` gave: to look one up takes longer than to count."""
    for metric in vars(metrics).values():
        metric.labels = cache(metric.labels)


class HttpMetrics:
    """What gateway and pods count of every HTTP request, under the names of prometheus-flask-exporter, which serves
    them: its own hooks cost a request five times as much."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests = counter("flask_http_request_total", "HTTP requests.", ["method", "status"])
        self.duration = histogram(
            "flask_http_request_duration_seconds",
            "Arrival to the head of the answer.",
            ["method", "url_rule", "status"],
        )
        _found_fast(self)

    def count(self, method: str, rule: str, status: int, seconds: float) -> None:
        """Counts a request. `rule` is the route's, not the path: a scan of random paths must not make time series."""
        method = method if method in HTTP_METHODS else "other"
        self.requests.labels(method, status).inc()
        self.duration.labels(method, rule, status).observe(seconds)


class GatewayMetrics:
    """What the gateway counts."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests = counter(
            "forebay_gateway_requests_total",
            "Generation requests by how they ended: ok, cached, client_error, rate_limited (the caller's own limit), "
            "overloaded (every pod full), client_gone, timeout, upstream_error, error.",
            ["model", "tenant", "outcome"],
        )
        self.duration = histogram(
            "gen_ai_server_request_duration_seconds",
            "First byte in to last byte out.",
            ["model"],
            buckets=DURATION_BUCKETS,
        )
        self.ttft = histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Request in to first generated token out, of streams.",
            ["model"],
            buckets=TTFT_BUCKETS,
        )
        self.tokens = counter(
            "gen_ai_client_token_usage_total",
            "Tokens that were used, by type: input or output.",
            ["model", "tenant", "token_type"],
        )
        self.cache = counter(
            "forebay_gateway_cache_lookups_total",
            "Response cache look-ups by result: hit, miss, bypass.",
            ["model", "result"],
        )
        self.refused = counter(
            "forebay_gateway_refused_total",
            "Requests refused by a limit of the caller's key or tenant (account), by cause: requests_per_minute, "
            "tokens_per_minute, concurrent, tokens_per_day, tokens_per_month, micros_per_day, micros_per_month.",
            ["tenant", "account", "cause"],
        )
        self.budget_used = gauge(
            "forebay_gateway_budget_used_ratio",
            "Part of a tenant's budget of the day or month that was used when it last asked, 0 to 1.",
            ["tenant", "period"],
            multiprocess_mode="mostrecent",
        )
        self.cost = counter(
            "forebay_gateway_cost_total",
            "What requests cost by the prices of the settings, in their currency.",
            ["model", "tenant"],
        )
        self.cost_saved = counter(
            "forebay_gateway_cost_saved_total",
            "What requests would have cost besides, had others not made their answers before, in the prices' currency.",
            ["model", "tenant"],
        )
        self.moderations = counter(
            "forebay_gateway_moderations_total",
            "Prompts that the moderation model was asked about, by result: passed, flagged, failed (no answer).",
            ["result"],
        )
        self.logins = counter(
            "forebay_gateway_logins_total",
            "Log-ins by how they ended: ok, wrong (name or password), throttled.",
            ["outcome"],
        )
        self.semantic = counter(
            "forebay_gateway_semantic_lookups_total",
            "Look-ups in the semantic cache by result: hit, miss, failed (no embedding in time).",
            ["result"],
        )
        self.saved_tokens = counter(
            "forebay_gateway_saved_tokens_total",
            "Tokens of answers that were there already: hit (response cache), coalesced (of an identical call at the "
            "same time), replayed (sent or asked for again), semantic (of nearly the same question), resumed (the part "
            "that another run had generated).",
            ["model", "tenant", "source"],
        )
        self.streams = gauge("forebay_gateway_streams_open", "Streams being relayed.", multiprocess_mode="livesum")
        self.held = gauge(
            "forebay_gateway_requests_held",
            "Requests that wait for a pod because none is ready for the model.",
            ["model"],
            multiprocess_mode="livesum",
        )
        self.retries = counter(
            "forebay_gateway_upstream_retries_total",
            "Requests sent to another pod because one could not be reached, was full or was lost.",
            ["model"],
        )
        self.resumes = counter(
            "forebay_gateway_streams_resumed_total",
            "Streams that went on at another pod after theirs was lost in mid-answer.",
            ["model"],
        )
        self.choices = counter(
            "forebay_gateway_upstream_choices_total",
            "Pods chosen, by what chose them: session, prefix (the pod that has the conversation's beginning), spilled "
            "(that one had too much to do, another one took it), least-loaded, only.",
            ["model", "policy"],
        )
        self.circuits_opened = counter(
            "forebay_gateway_circuits_opened_total",
            "Times that a pod was taken out of the choice for a while, by cause: failures, slow.",
            ["cause"],
        )
        self.circuits_open = gauge(
            "forebay_gateway_circuits_open",
            "Ready pods of the model whose circuit is open or half-open.",
            ["model"],
            multiprocess_mode="livemax",
        )
        self.upstreams_ready = gauge(
            "forebay_gateway_upstreams_ready",
            "Pods that are ready for the model.",
            ["model"],
            multiprocess_mode="livemax",
        )
        self.watch_heard = gauge(
            "forebay_gateway_kubernetes_watch_last_success_timestamp_seconds",
            "When the API server last told a gateway of the EndpointSlices of a namespace, in Unix seconds; of several "
            "workers the one that has waited longest. Absent where none is watched.",
            ["watched_namespace"],
            multiprocess_mode="livemin",
        )
        self.ledger_waiting = gauge(
            "forebay_gateway_ledger_entries_waiting",
            "Calls that are settled and wait in Redis for the ledger's table in SQL.",
            multiprocess_mode="livemax",
        )
        self.ledger_oldest = gauge(
            "forebay_gateway_ledger_oldest_seconds",
            "Age of the call that has waited longest for the ledger's table in SQL; 0 where none waits.",
            multiprocess_mode="livemax",
        )
        self.ledger_written = counter("forebay_gateway_ledger_written_total", "Rows that the ledger got in SQL.")
        self.ledger_spooled = counter(
            "forebay_gateway_ledger_spooled_total",
            "Calls that went to the ledger past Redis, as it was gone or another had settled them.",
        )
        self.ledger_spool = gauge(
            "forebay_gateway_ledger_spool_entries",
            "Calls that are only in a gateway's memory, since neither Redis nor SQL takes them.",
            multiprocess_mode="livesum",
        )
        self.ledger_lost = counter(
            "forebay_gateway_ledger_lost_total",
            "Calls that only the log knows of: too many waited in memory, or the gateway ended.",
        )
        self.orphans_settled = counter(
            "forebay_gateway_orphans_settled_total",
            "Calls of gateways that died, by outcome: orphaned (a pod knew the counts), gateway_lost (none did), known "
            "(the ledger had them already).",
            ["outcome"],
        )
        self.accounts_down = gauge(
            "forebay_gateway_database_down",
            "1 while the accounts' database cannot be reached: known keys go on for a while, others get 503.",
            multiprocess_mode="livemax",
        )
        self.cache_down = gauge(
            "forebay_gateway_redis_down",
            "1 while Redis cannot be reached: response cache off, quotas held per process.",
            multiprocess_mode="livemax",
        )
        _found_fast(self)


class EngineMetrics:
    """What an inference pod counts."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests = counter(
            "forebay_engine_requests_total",
            "Requests by how they ended: stop, length, cancelled, deadline, error.",
            ["model", "outcome"],
        )
        self.ttft = histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Arrival at the pod to first token.",
            ["model"],
            buckets=TTFT_BUCKETS,
        )
        self.token_time = histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time between the tokens of a request, after the first.",
            ["model"],
            buckets=TOKEN_TIME_BUCKETS,
        )
        self.duration = histogram(
            "gen_ai_server_request_duration_seconds",
            "Arrival at the pod to last token.",
            ["model"],
            buckets=DURATION_BUCKETS,
        )
        self.prompt_tokens = counter("forebay_engine_prompt_tokens_total", "Prompt tokens computed.", ["model"])
        self.cached_tokens = counter(
            "forebay_engine_prefix_cache_hit_tokens_total",
            "Prompt tokens that the prefix cache had, and that were not computed.",
            ["model"],
        )
        self.generated_tokens = counter("forebay_engine_generated_tokens_total", "Tokens generated.", ["model"])
        self.waiting = gauge(
            "forebay_engine_requests_waiting", "Requests in the queue.", ["model"], multiprocess_mode="livesum"
        )
        self.running = gauge(
            "forebay_engine_requests_running", "Requests in the running batch.", ["model"], multiprocess_mode="livesum"
        )
        self.batch = histogram(
            "forebay_engine_batch_size", "Requests that a step computed.", ["model"], buckets=BATCH_BUCKETS
        )
        self.kv_usage = gauge(
            "forebay_engine_kv_cache_usage_ratio",
            "Part of the KV cache blocks in use, 0 to 1.",
            ["model"],
            multiprocess_mode="livemax",
        )
        self.step_time = histogram(
            "forebay_engine_step_seconds", "Time of one engine step.", ["model"], buckets=TOKEN_TIME_BUCKETS
        )
        self.compute_seconds = counter(
            "forebay_engine_compute_seconds_total", "Time of the steps that is charged to their requests.", ["model"]
        )
        self.joules = counter(
            "forebay_engine_energy_joules_total",
            "Energy of the steps that is charged to their requests; absent where no GPU tells it.",
            ["model"],
        )
        self.preemptions = counter(
            "forebay_engine_preemptions_total",
            "Times that a request gave its KV cache blocks up to an older one, counted when the request ends.",
            ["model"],
        )
        self.step_failures = counter(
            "forebay_engine_step_failures_total",
            "Steps that failed, by cause: out_of_memory (its requests are tried once more), error (they end).",
            ["model", "cause"],
        )
        self.load_time = gauge(
            "forebay_engine_load_seconds",
            "Time that getting the model ready took, by phase.",
            ["model", "phase"],
            multiprocess_mode="livemax",
        )
        _found_fast(self)
