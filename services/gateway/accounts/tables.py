"""The schema. Times are whole Unix seconds, as in OpenAI's API: SQLite has no type for them that PostgreSQL shares.

Ids are strings that sort by the time they were made, so that a list can be paged by id alone. They are never given out
twice, not even by a database that was restored or begun anew: what Redis still holds for an old tenant or key, and the
tokens of an old user, can't fall to a new one.
"""

from __future__ import annotations

import re
import time
from typing import Any, Literal, get_args

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, MetaData, String, Text, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from services.cache.windows import LIMITS, Limits
from services.common.ids import new_id

Role = Literal["admin", "member"]
Scope = Literal["inference", "admin"]

ID = re.compile(r"[0-9a-f]{28}")

ROLE_SCOPES: dict[str, frozenset[str]] = {"admin": frozenset(get_args(Scope)), "member": frozenset({"inference"})}


def unix_now() -> int:
    return int(time.time())


class Base(DeclarativeBase):
    # Constraints have names, so that a migration can address them on every database.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    id: Mapped[str] = mapped_column(String(28), primary_key=True, default=new_id)
    created_at: Mapped[int] = mapped_column(BigInteger, default=unix_now)


class Rights:
    """Columns of whoever may be limited: tenants, users, keys. A limit of None is the settings' default, or none.

    `models` are the names that may be used, None for every model.
    """

    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    concurrent: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_month: Mapped[int | None] = mapped_column(BigInteger)
    micros_per_day: Mapped[int | None] = mapped_column(BigInteger)
    micros_per_month: Mapped[int | None] = mapped_column(BigInteger)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))

    @property
    def limits(self) -> Limits:
        return Limits(*(getattr(self, name) for name in LIMITS))

    @property
    def allowed_models(self) -> frozenset[str] | None:
        return None if self.models is None else frozenset(self.models)


class Tenant(Rights, Base):
    """A customer of the service. `weight` is its fair share of the pods beside others; `share_cache` lets it share
    cached answers with the other tenants that do; a disabled one's keys and users are refused."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(63), unique=True)
    weight: Mapped[float] = mapped_column(Float, default=1.0, server_default="1")
    share_cache: Mapped[bool] = mapped_column(default=False, server_default=false())
    disabled: Mapped[bool] = mapped_column(default=False, server_default=false())


class User(Rights, Base):
    """A person who logs in. `token_epoch` stands in each of the user's tokens: raising it ends them all."""

    __tablename__ = "users"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    username: Mapped[str] = mapped_column(String(128), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(16))
    disabled: Mapped[bool] = mapped_column(default=False)
    token_epoch: Mapped[int] = mapped_column(default=0)

    tenant: Mapped[Tenant] = relationship(lazy="joined", innerjoin=True)

    @property
    def scopes(self) -> frozenset[str]:
        return ROLE_SCOPES[self.role]


class Key(Rights, Base):
    """An API key, known by its public prefix and its keyed hash. `rotated_from` is the id of the key it replaces."""

    __tablename__ = "keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(255))
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    disabled: Mapped[bool] = mapped_column(default=False, server_default=false())
    rotated_from: Mapped[str | None] = mapped_column(String(28))

    tenant: Mapped[Tenant] = relationship(lazy="joined", innerjoin=True)

    @property
    def scopes(self) -> frozenset[str]:
        """The column holds them as RFC 6749 section 3.3 writes a scope: words with a space between."""
        return frozenset(self.scope.split())

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class RevokedToken(Base):
    """A JWT that is refused before its time. Its id is the token's `jti`; after `expires_at` the row is of no use."""

    __tablename__ = "revoked_tokens"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)


class AuditEntry(Base):
    """An action of an admin. Names stand here as they were: the entry outlives what it speaks of."""

    __tablename__ = "audit_entries"

    actor: Mapped[str] = mapped_column(String(128))
    tenant: Mapped[str] = mapped_column(String(63))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(128))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    request_id: Mapped[str | None] = mapped_column(String(128))

    # Lists are of one tenant, newest first.
    __table_args__ = (Index("ix_audit_entries_tenant_id", "tenant", "id"),)


class StoredAnswer(Base):
    """The answer to an admin's write, for who sends it again with the same `Idempotency-Key`. Its id is a hash."""

    __tablename__ = "stored_answers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column()
    body: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
