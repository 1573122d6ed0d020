"""`python -m services.gateway.accounts` brings the database of the settings to today's schema, and does no more."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from services.common.settings import GatewaySettings, wrong_settings
from services.gateway.accounts.database import make_engine, prepare


def main() -> int:
    """Exit status 0, or 2 where the settings are not complete."""
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        sys.stderr.write(f"The settings are not complete: {'; '.join(wrong_settings(error))}\n")
        return 2
    engine = make_engine(settings.database_url, pool_size=1, wait=settings.database_timeout)
    prepare(engine)
    engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
