"""The schema's versions, for Alembic. A new one: a file in `versions/` with the next number; see `accounts/migrate.py`."""
