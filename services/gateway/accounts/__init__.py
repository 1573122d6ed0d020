"""Tenants, users, API keys and revoked tokens, in SQL: SQLite by default, PostgreSQL by URL, with the same code.

`tables` is the schema, `credentials` the arithmetic of keys and passwords, `store` the queries, `database` opens them.
Nothing here knows Flask.
"""

from services.gateway.accounts.database import open_accounts
from services.gateway.accounts.store import PLATFORM, Accounts
from services.gateway.accounts.tables import Key, Role, Scope, Tenant, User

__all__ = ["PLATFORM", "Accounts", "Key", "Role", "Scope", "Tenant", "User", "open_accounts"]
