"""The schema's versions, for Alembic. A new one is a file in `versions/` with the next number: see `migrate.py`."""
