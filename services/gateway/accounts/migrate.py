"""The schema's way from one version to the next, by Alembic. Every process that opens the accounts goes it, and from a
shell `python -m services.gateway.accounts` does, with the settings of the environment.

Migrations only add, with defaults that the version before can live with, since during a rolling update both run. So a
database that is ahead of this code, as after a step back, is left as it is.
"""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

log = logging.getLogger("forebay.accounts")

MIGRATIONS = Path(__file__).parent / "migrations"
FIRST = "0001"
"""What a database is that was made before there were migrations."""


def upgrade(connection: Connection) -> None:
    """Brings the schema to the newest version within the connection's transaction. The caller holds the lock.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database can't be written.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return
    if current is None and inspect(connection).has_table("tenants"):
        command.stamp(config, FIRST)
    elif current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        log.warning("the database is of a newer version than this gateway", extra={"revision": current})
        return
    command.upgrade(config, "head")
