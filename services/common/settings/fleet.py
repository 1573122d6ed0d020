"""What `forebay up` reads."""

from __future__ import annotations

from pydantic import Field

from services.common.settings.common import CommonSettings


class FleetSettings(CommonSettings):
    """What `forebay up` starts."""

    gateways: int = Field(1, ge=1, description="Gateway processes, on consecutive ports.")
    pods: int = Field(1, ge=1, description="Inference pods, on consecutive ports.")
