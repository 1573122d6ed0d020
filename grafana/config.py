"""What to tune: service level objectives, burn-rate windows, thresholds, where the runbooks are read."""

from __future__ import annotations

from dataclasses import dataclass, field

AVAILABILITY_TARGET = 0.995
"""Part of the requests that must end well, over `PERIOD`."""
TTFT_TARGET = 0.95
"""Part of the streams whose first token must come within `TTFT_SECONDS`."""
TTFT_SECONDS = 2.5
"""Must be one of `services.common.metrics.TTFT_BUCKETS`: Prometheus only counts at their bounds."""
RETRIES = 0.1
"""Part of the requests that may go to a second pod for a while; the gateways stop at `FOREBAY_RETRY_BUDGET`, 0.2."""
LEDGER_SECONDS = 300
"""How far SQL may be behind; seconds when all is well."""
WATCH_SECONDS = 300
"""How long Kubernetes may not be heard. A watch that is well hears of it every minute, as the server ends it then."""
MODERATION_FAILED = 0.05
"""Part of the prompts that the moderation model may leave without an answer."""
PERIOD = "30d"
"""What the objectives, and with them the error budget, are counted over."""


@dataclass(frozen=True)
class Window:
    """Fires when the budget burns `factor` times too fast, over the long and over the short window.

    The long one says that it matters, the short one that it is still going on.
    """

    factor: float
    long: str
    short: str
    wait: str
    severity: str


WINDOWS = (
    Window(14.4, "1h", "5m", "2m", "critical"),
    Window(6, "6h", "30m", "15m", "critical"),
    Window(3, "1d", "2h", "1h", "warning"),
    Window(1, "3d", "6h", "3h", "warning"),
)
"""At these factors 2 %, 5 %, 10 % and 10 % of a 30-day budget are gone when the long window is full."""


@dataclass(frozen=True)
class Options:
    """What may differ between the rules that are shipped and those that a test runs."""

    runbooks: str = ""
    """URL of a rendered copy of this repository, ending with a slash; empty: runbook links are paths in it."""
    slow_interval: str = "5m"
    """How often the ratios over days are computed anew."""
    waits: dict[str, str] = field(default_factory=dict)
    """Another `for` of single alerts, by name."""
