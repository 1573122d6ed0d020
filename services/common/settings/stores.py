"""Where the gateway keeps things: Redis and the database."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from services.common.settings.common import CommonSettings
from services.common.settings.environment import MAY_HOLD_CREDENTIALS


class StoreSettings(CommonSettings):
    """Redis and the database."""

    redis_url: Annotated[str, MAY_HOLD_CREDENTIALS] = Field(
        "redis://127.0.0.1:6379/0", description="Redis or Valkey: quotas and response cache."
    )
    database_url: Annotated[str, MAY_HOLD_CREDENTIALS] = Field(
        "sqlite:///.forebay/forebay.db", description="SQLAlchemy URL of accounts, keys and revocations."
    )
    database_pool_size: int = Field(20, ge=1, description="Connections that one worker keeps to the database server.")
    database_timeout: float = Field(
        5.0, gt=0, description="Seconds to wait for a connection to the database, a lock in it or its answer."
    )
    ledger_retention_days: int = Field(
        0, ge=0, description="Days that the usage ledger keeps the row of a call; 0 keeps it for ever."
    )
