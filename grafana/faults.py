"""Alerts on what is wrong now: something is gone, pods don't do what they should, the books are behind."""

from __future__ import annotations

from grafana import queries as q
from grafana.alerts import IN, Rule, alert
from grafana.config import LEDGER_SECONDS, MODERATION_FAILED, RETRIES, WATCH_SECONDS, Options
from grafana.records import WAITING


def faults(options: Options) -> list[Rule]:
    ready = q.select("forebay_gateway_upstreams_ready", q.GATEWAY)
    gateways = f"sum by (namespace) (up{{{q.GATEWAY}}} == 1)"
    return [
        alert(
            options,
            "ForebayNoReadyPod",
            # The second half: a gateway that has not seen any model since it started.
            f"max by (namespace, model) ({ready}) == 0\nor\n{gateways} unless on (namespace) {ready}",
            wait="2m",
            severity="critical",
            summary=f'No pod in {IN} is ready for {{{{ or $labels.model "any model" }}}}.',
            description="Every request for the model is answered 503 until a pod is ready again.",
        ),
        alert(
            options,
            "ForebayQueueGrowing",
            # Also true of a queue that has reached its end, where it can grow no more.
            f"min_over_time({WAITING}[10m]) > 0\nand\n{WAITING} >= ({WAITING} offset 10m)",
            wait="5m",
            severity="warning",
            summary=f"The queue for {{{{ $labels.model }}}} in {IN} does not get shorter.",
            description="{{ $value }} requests or more have waited at any time of the last ten minutes. "
            "More comes in than the pods can do; when the queue is full, callers get 429.",
        ),
        alert(
            options,
            "ForebayRedisDown",
            f"max by (namespace) ({q.select('forebay_gateway_redis_down', q.GATEWAY)}) == 1",
            wait="2m",
            severity="warning",
            summary=f"A gateway in {IN} cannot reach Redis.",
            description="Requests still flow: the response cache is off, and each gateway process holds the quotas "
            "by itself, without knowing of the others.",
        ),
        alert(
            options,
            "ForebayDatabaseDown",
            f"max by (namespace) ({q.select('forebay_gateway_database_down', q.GATEWAY)}) == 1",
            wait="1m",
            severity="critical",
            summary=f"A gateway in {IN} cannot reach the accounts' database.",
            description="Keys and tokens that were used in the last ten minutes stay good; all others, and every "
            "log-in, get 503. When the ten minutes are over, nobody gets in.",
        ),
        alert(
            options,
            "ForebayModerationFailing",
            f"{_moderations('failed')}\n/ {_moderations()} > {MODERATION_FAILED:g}",
            wait="5m",
            severity="warning",
            summary=f"The moderation model gives the gateways in {IN} no answers.",
            description="{{ $value | humanizePercentage }} of the prompts got none in time. Those are refused with "
            "503, or, where FOREBAY_MODERATION_FAILURE is open, answered without having been looked at.",
        ),
        *(
            alert(
                options,
                "ForebayMetricsAbsent",
                f'absent(up{{component="{component}"}} == 1)',
                wait="10m",
                severity="critical",
                summary=f"Prometheus reads no {word}.",
                description=f"No target with component={component} answers. Either none runs, or the scrape "
                "configuration no longer finds them; the other alerts see nothing meanwhile.",
                component=component,
            )
            for component, word in (("gateway", "gateway"), ("inference", "inference pod"))
        ),
    ]


def _moderations(result: str = "") -> str:
    matchers = (q.GATEWAY, f'result="{result}"' if result else "")
    return q.total("namespace", q.rate("forebay_gateway_moderations_total", "5m", *matchers))


def routes(options: Options) -> list[Rule]:
    """Pods that are there and don't do what they should."""
    retries, requests = (
        q.total("namespace, model", q.rate(metric, "10m", q.GATEWAY))
        for metric in ("forebay_gateway_upstream_retries_total", "forebay_gateway_requests_total")
    )
    heard = q.select("forebay_gateway_kubernetes_watch_last_success_timestamp_seconds", q.GATEWAY)
    return [
        alert(
            options,
            "ForebayCircuitOpen",
            f"max by (namespace, model) ({q.select('forebay_gateway_circuits_open', q.GATEWAY)}) > 0",
            wait="10m",
            severity="warning",
            summary=f"A ready pod of {{{{ $labels.model }}}} in {IN} gets no requests.",
            description="It fails, or is far slower than its peers, whenever it is tried. The other pods carry its "
            "load; a rollout, or Kubernetes, sees nothing of it.",
        ),
        alert(
            options,
            "ForebayRetriesHigh",
            f"{retries}\n/ {requests} > {RETRIES:g}",
            wait="5m",
            severity="warning",
            summary=f"Many requests for {{{{ $labels.model }}}} in {IN} need a second pod.",
            description="{{ $value | humanizePercentage }} of them were sent to another one because a pod was gone, "
            "full or lost. At the retry budget the gateways stop, and callers get the errors.",
        ),
        alert(
            options,
            "ForebayWatchStale",
            f"time() - min by (namespace, watched_namespace) ({heard}) > {WATCH_SECONDS}",
            wait="2m",
            severity="warning",
            summary=f"A gateway in {IN} does not hear of the pods in {{{{ $labels.watched_namespace }}}}.",
            description="Kubernetes last said which pods there are {{ $value | humanizeDuration }} ago. The gateway "
            "goes on with those that it knows, as long as they answer; it finds no new ones.",
        ),
        alert(
            options,
            "ForebayRequestsHeld",
            f"sum by (namespace, model) ({q.select('forebay_gateway_requests_held', q.GATEWAY)}) > 0",
            wait="10m",
            severity="warning",
            summary=f"Requests for {{{{ $labels.model }}}} in {IN} wait for a pod.",
            description="For ten minutes no pod has taken all of them. Each waits as long as the hold allows and is "
            "then answered 503 with a Retry-After; those beyond the hold's number get that at once.",
        ),
    ]


def books(options: Options) -> list[Rule]:
    """The usage ledger."""
    oldest, spool, lost = (
        q.select(f"forebay_gateway_ledger_{name}", q.GATEWAY)
        for name in ("oldest_seconds", "spool_entries", "lost_total")
    )
    return [
        alert(
            options,
            "ForebayLedgerBehind",
            f"max by (namespace) ({oldest}) > {LEDGER_SECONDS}",
            wait="5m",
            severity="warning",
            summary=f"The usage ledger in {IN} is behind.",
            description="The oldest call that the database does not have is {{ $value | humanizeDuration }} old. They "
            "wait in Redis, where nothing is lost until its memory is full.",
        ),
        alert(
            options,
            "ForebayLedgerInMemory",
            f"sum by (namespace) ({spool}) > 0",
            wait="2m",
            severity="critical",
            summary=f"Calls in {IN} are only in the gateways' memory.",
            description="{{ $value }} calls could be written neither to Redis nor to the database. They are lost when "
            "a gateway ends, or has 50,000 of them.",
        ),
        alert(
            options,
            "ForebayLedgerLost",
            f"sum by (namespace) (increase({lost}[15m])) > 0",
            wait="0m",
            severity="critical",
            summary=f"Calls in {IN} are missing in the usage ledger.",
            description="Only the gateways' log has them, whole, and the ledger must be mended from it.",
        ),
    ]
