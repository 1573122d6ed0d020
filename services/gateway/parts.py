"""The parts that the steps of a request work with."""

from __future__ import annotations

from dataclasses import dataclass

from services.cache.connection import Connection
from services.cache.quotas import Quotas
from services.cache.responses import Responses
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings
from services.gateway.identify import Identifier
from services.gateway.moderation import Moderator
from services.gateway.upstreams.discover import Fleet


@dataclass(frozen=True)
class Gateway:
    """One of each part, in each worker process."""

    settings: GatewaySettings
    metrics: GatewayMetrics
    identifier: Identifier
    connection: Connection
    quotas: Quotas
    responses: Responses
    fleet: Fleet
    moderator: Moderator | None
    """None where no moderation model is named."""
