"""A pod's report of its load: ORCA's response header `endpoint-load-metrics`, written by pods and read by gateways.

Open Request Cost Aggregation is what Envoy and gRPC read (`xds/data/orca/v3/orca_load_report.proto`, gRFC A51); vLLM
writes it too, where a request has `endpoint-load-metrics-format`. The value begins with its format: `JSON` and an
object, `TEXT` and `name=value` pairs with dots in nested names, or `BIN`, which is not read here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

LOAD_HEADER = "endpoint-load-metrics"
LOAD_FORMAT_HEADER = "endpoint-load-metrics-format"
"""Request header that has vLLM report; its values are `TEXT` and `JSON`."""


@dataclass(frozen=True, slots=True)
class Report:
    """How full a pod is; None is what it does not tell. Names on the wire are vLLM's metrics without the prefix.

    waiting, running: requests in its queue and in its batch. capacity: requests that the batch holds at most.
    kv_usage: part of the KV cache in use, 0 to 1. rate: requests that it finishes a second while it has work.
    """

    waiting: int
    running: int | None = None
    capacity: int | None = None
    kv_usage: float | None = None
    rate: float | None = None

    def header(self) -> str:
        """The header's value."""
        named = {
            "num_requests_waiting": self.waiting,
            "num_requests_running": self.running,
            "max_num_seqs": self.capacity,
            "kv_cache_usage_perc": self.kv_usage,
        }
        body: dict[str, Any] = {"named_metrics": {name: value for name, value in named.items() if value is not None}}
        if self.rate is not None:
            body["rps_fractional"] = self.rate
        if self.capacity:
            body["application_utilization"] = round((self.waiting + (self.running or 0)) / self.capacity, 3)
        return f"JSON {json.dumps(body, separators=(',', ':'))}"


def read_report(value: str) -> Report | None:
    """The report in a header's value; None where it is none that can be read, or has no queue length."""
    kind, _, rest = value.partition(" ")
    try:
        if kind == "JSON":
            fields = json.loads(rest)
            named = fields.get("named_metrics", {})
        elif kind == "TEXT":
            fields = {
                name.strip(): float(number) for name, _, number in (one.partition("=") for one in rest.split(","))
            }
            named = {name.removeprefix("named_metrics."): number for name, number in fields.items()}
        else:
            return None
        waiting = named.get("num_requests_waiting")
        return waiting if waiting is None else _report(int(waiting), named, fields.get("rps_fractional"))
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


def _report(waiting: int, named: dict[str, Any], rate: Any) -> Report | None:
    running, capacity = named.get("num_requests_running"), named.get("max_num_seqs")
    usage = named.get("kv_cache_usage_perc")
    report = Report(
        waiting,
        running if running is None else int(running),
        capacity if capacity is None else int(capacity),
        usage if usage is None else float(usage),
        rate if rate is None else float(rate),
    )
    numbers = (report.waiting, report.running, report.capacity, report.kv_usage, report.rate)
    return report if all(number is None or 0 <= number < math.inf for number in numbers) else None
