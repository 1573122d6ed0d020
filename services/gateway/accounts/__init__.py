"""Tenants, users, API keys and revoked tokens, in SQL: SQLite by default, PostgreSQL by URL, with the same code.

`tables` is the schema and `migrations` its way here, `credentials` the arithmetic of keys and passwords, `sessions` the
transactions, `store` the queries, `audit` what admins did; `database` opens it all.
Nothing here knows Flask.
"""

from services.gateway.accounts.database import open_accounts
from services.gateway.accounts.store import PLATFORM, Accounts
from services.gateway.accounts.tables import AuditEntry, Key, Role, Scope, StoredAnswer, Tenant, User

__all__ = [
    "PLATFORM",
    "Accounts",
    "AuditEntry",
    "Key",
    "Role",
    "Scope",
    "StoredAnswer",
    "Tenant",
    "User",
    "open_accounts",
]
