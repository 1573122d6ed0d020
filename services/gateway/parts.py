"""The parts that the steps of a request work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.cache.connection import Connection
from services.cache.processes import Process
from services.cache.quotas import Quotas
from services.cache.responses import Responses
from services.cache.tapes import Tapes
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings
from services.gateway.budgets import Budgets
from services.gateway.estimate import Estimates
from services.gateway.hold import Hold
from services.gateway.identify import Identifier
from services.gateway.ledger import Ledger
from services.gateway.moderation import Moderator
from services.gateway.prices import Prices
from services.gateway.spans import Spans
from services.gateway.upstreams.discover import Fleet

if TYPE_CHECKING:
    from services.gateway.recall.flights import Flights
    from services.gateway.recall.known import Known
    from services.gateway.recall.semantic import Semantic


@dataclass(frozen=True)
class Gateway:
    """One of each part, in each worker process."""

    settings: GatewaySettings
    metrics: GatewayMetrics
    identifier: Identifier
    connection: Connection
    process: Process
    quotas: Quotas
    prices: Prices
    estimates: Estimates
    budgets: Budgets
    responses: Responses
    known: Known
    fleet: Fleet
    hold: Hold
    spans: Spans | None
    """None where no collector is named."""
    ledger: Ledger
    tapes: Tapes
    flights: Flights
    semantic: Semantic | None
    """None where no embedding service is named."""
    moderator: Moderator | None
    """None where no moderation model is named."""
