"""Tenants, users, API keys and revoked tokens, in SQL: SQLite by default, PostgreSQL by URL, with the same code.

`store` brings the nouns together: `tenants`, `users`, `keys`, `tokens`, and `audit`, what admins did. `rows` is what
they share, `changes` what may be set on them, `credentials` the arithmetic of keys and passwords, `sessions` the
transactions. `tables` is the schema, `migrations` its versions, `migrate` the way from one to the next; `database`
opens it all. Nothing here knows Flask.
"""

from services.gateway.accounts.database import open_accounts
from services.gateway.accounts.store import Accounts
from services.gateway.accounts.tables import AuditEntry, Key, Role, Scope, StoredAnswer, Tenant, User
from services.gateway.accounts.tenants import PLATFORM

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
