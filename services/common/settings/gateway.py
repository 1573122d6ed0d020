"""What the gateway reads: how it is served, and its subjects, each a class of its own for whoever needs no more."""

from __future__ import annotations

from pydantic import Field

from services.common.settings.identity import IdentitySettings
from services.common.settings.limits import LimitSettings
from services.common.settings.recall import RecallSettings
from services.common.settings.routing import RoutingSettings
from services.common.settings.screening import ScreeningSettings
from services.common.settings.stores import StoreSettings


class GatewaySettings(
    StoreSettings, IdentitySettings, LimitSettings, ScreeningSettings, RecallSettings, RoutingSettings
):
    """The gateway's own settings."""

    gateway_port: int = Field(8080, ge=1, le=65535, description="HTTP port of the gateway.")
    gateway_workers: int = Field(1, ge=1, description="Worker processes of one gateway.")
    gateway_connections: int = Field(1000, ge=1, description="Connections that one worker holds at the same time.")
    route_timeouts: dict[str, float] = Field(
        {}, description='Time-outs of single routes, as JSON: `{"/generate": 30}`; the others take request_timeout.'
    )
    drain_delay: float = Field(
        0.0,
        ge=0,
        description="Seconds after SIGTERM in which a gateway still takes requests, while `/readyz` answers 503 "
        "already: the time that load balancers need to send no more. Then shutdown_grace begins.",
    )
    tracing_url: str = Field(
        "",
        description="Where spans are sent, OTLP over HTTP: `http://collector:4318/v1/traces`. Empty: there are none. "
        "Needs the extra `tracing`.",
    )
