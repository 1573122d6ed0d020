"""The schema. Times are whole Unix seconds, as in OpenAI's API: SQLite has no type for them that PostgreSQL shares.

Ids are strings that sort by the time they were made, so that a list can be paged by id alone. They are never given out
twice, not even by a database that was restored or begun anew: what Redis still holds for an old tenant or key, and the
tokens of an old user, can't fall to a new one.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Literal, get_args

from sqlalchemy import BigInteger, ForeignKey, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

Role = Literal["admin", "member"]
Scope = Literal["inference", "admin"]

ID = re.compile(r"[0-9a-f]{28}")

ROLE_SCOPES: dict[str, frozenset[str]] = {"admin": frozenset(get_args(Scope)), "member": frozenset({"inference"})}


def new_id() -> str:
    """Sixteen hex digits of nanoseconds, then 48 random bits."""
    return f"{time.time_ns():016x}{secrets.token_hex(6)}"


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


class Tenant(Base):
    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(63), unique=True)


class User(Base):
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


class Key(Base):
    """An API key, known by its public prefix and its keyed hash. A limit of None means the settings' default."""

    __tablename__ = "keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(255))
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)

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
