"""The accounts in one database, by noun.

Each method of a noun is one short transaction, or a part of the one that `Accounts.transaction` has opened; rows come
back detached, with their tenant loaded. Each raises `AccountsUnavailable` while the database can't be reached.
`tenant` is a tenant's name everywhere; None as a filter is every tenant. A change is given by name: a limit, `models`
or `expires_at` of None is taken away, and what is not named stays.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from argon2 import PasswordHasher
from sqlalchemy import Engine

from services.gateway.accounts.audit import Answers, AuditLog
from services.gateway.accounts.credentials import keyed_hash
from services.gateway.accounts.keys import Keys
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.tables import Tenant
from services.gateway.accounts.tenants import Tenants
from services.gateway.accounts.tokens import RevokedTokens
from services.gateway.accounts.users import Users


class Accounts:
    """Who may come in: `tenants`, `users`, `keys`, and the `revoked` tokens.

    `audit` is the log of what admins did, `answers` keeps what their writes were answered.
    """

    def __init__(self, sessions: Sessions, *, key_secret: str, hasher: PasswordHasher) -> None:
        self.sessions = sessions
        self.tenants = Tenants(sessions)
        self.users = Users(sessions, hasher)
        self.keys = Keys(sessions, key_secret)
        self.revoked = RevokedTokens(sessions)
        self.audit = AuditLog(sessions)
        self.answers = Answers(sessions)
        self._key_secret = key_secret

    @property
    def engine(self) -> Engine:
        return self.sessions.engine

    def transaction(self) -> AbstractContextManager[None]:
        """Makes one transaction of all the methods called within. No password may be hashed within: see
        `Sessions.transaction`."""
        return self.sessions.transaction()

    def close(self) -> None:
        """Closes the pooled connections."""
        self.engine.dispose()

    def keyed_hash(self, purpose: str, text: str) -> str:
        """HMAC of a text under the secret that keys the hashes of API keys: 64 hex digits, other ones for another
        purpose."""
        return keyed_hash(self._key_secret, purpose, text)

    def cache_salt(self, tenant: Tenant) -> str:
        """What keys the tenant's entries in the response cache and in the pods' KV prefix cache: 64 hex digits."""
        return self.keyed_hash("cache", tenant.id)
