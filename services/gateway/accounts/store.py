"""The queries. Each method is one short transaction; rows come back detached, with their tenant loaded."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from argon2 import PasswordHasher
from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from services.common.errors import Conflict, InvalidRequest, NotFound
from services.gateway.accounts.credentials import key_prefix, keyed_hash, matches, mint_key, off_loop
from services.gateway.accounts.tables import ID, Key, RevokedToken, Role, Scope, Tenant, User, unix_now

PLATFORM = "platform"
"""The tenant of the people who run Forebay: its admins administer every tenant, others' only their own."""

TENANT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
USERNAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,127}", re.ASCII)

Row = TypeVar("Row", Tenant, User, Key)
Owned = TypeVar("Owned", User, Key)


class Accounts:
    """All that the gateway keeps in SQL. `tenant` is a tenant's name everywhere; None as a filter is every tenant."""

    def __init__(self, engine: Engine, *, key_secret: str, hasher: PasswordHasher) -> None:
        self._engine = engine
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._key_secret = key_secret
        self._hasher = hasher
        self._nobody = off_loop(hasher.hash, "the password of a user that does not exist")

    def close(self) -> None:
        """Closes the pooled connections."""
        self._engine.dispose()

    def create_tenant(self, name: str) -> Tenant:
        """A new tenant. The name is a slug, since it labels metrics; `other` is the label of those beyond their cap.

        Raises:
            InvalidRequest: the name is no slug of 1 to 63 characters, or is `other`.
            Conflict: there is one of that name.
        """
        if not TENANT_NAME.fullmatch(name) or name == "other":
            reason = "must be 1 to 63 lower-case letters, digits and inner hyphens, and not 'other'"
            raise InvalidRequest(f"Invalid value for 'name': {reason}.", param="name")
        return self._insert(Tenant(name=name), f"A tenant named '{name}' exists already.", param="name")

    def tenants(self, *, only: str | None = None, after: str | None = None, limit: int = 100) -> Sequence[Tenant]:
        """Tenants in the order they were made, those behind the id `after`; of one name with `only`."""
        return self._page(Tenant, Tenant.name == only if only else None, after, limit)

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name.

        Raises:
            NotFound: there is none.
        """
        with self._sessions() as session:
            return _tenant(session, name)

    def create_user(self, tenant: str, username: str, password: str, role: Role = "member") -> User:
        """A new user, of whose password only an argon2 hash is kept.

        Raises:
            InvalidRequest: the user name has characters that are not allowed.
            NotFound: no such tenant.
            Conflict: the user name is taken, in this tenant or another.
        """
        if not USERNAME.fullmatch(username):
            reason = "must be 1 to 128 of a-z 0-9 . _ @ + - and begin with a letter or digit"
            raise InvalidRequest(f"Invalid value for 'username': {reason}.", param="username")
        owner = self.tenant(tenant)
        user = User(tenant_id=owner.id, username=username, password_hash=self._hash(password), role=role)
        return self._insert(user, f"A user named '{username}' exists already.", param="username")

    def users(self, *, tenant: str | None = None, after: str | None = None, limit: int = 100) -> Sequence[User]:
        """Users in the order they were made, those behind the id `after`."""
        return self._page(User, User.tenant.has(name=tenant) if tenant else None, after, limit)

    def user(self, identity: str) -> User | None:
        """The user of that id."""
        with self._sessions() as session:
            return _get(session, User, identity)

    def find_user(self, username: str) -> User | None:
        """The user of that name."""
        if not USERNAME.fullmatch(username):
            return None
        with self._sessions() as session:
            return session.scalar(select(User).where(User.username == username))

    def update_user(
        self, identity: str, *, tenant: str | None = None, disabled: bool | None = None, password: str | None = None
    ) -> User:
        """Disables or enables a user, or sets a new password. Every token that the user holds ends with it.

        Raises:
            NotFound: no such user in the tenant.
        """
        password_hash = None if password is None else self._hash(password)
        with self._sessions.begin() as session:
            user = _owned(session, User, identity, tenant)
            if disabled is not None:
                user.disabled = disabled
            if password_hash is not None:
                user.password_hash = password_hash
            # Computed by the database, so that two changes at once can't cancel each other out.
            user.token_epoch = User.token_epoch + 1
            session.flush()
            session.refresh(user)
        return user

    def verify_user(self, username: str, password: str) -> User | None:
        """The user whose name and password these are, None if they are wrong or the user is disabled.

        A name that does not exist takes as long as a wrong password: the time must not tell which names exist.
        """
        user = self.find_user(username)
        right = off_loop(matches, self._hasher, user.password_hash if user else self._nobody, password)
        if user is None or not right or user.disabled:
            return None
        if self._hasher.check_needs_rehash(user.password_hash):
            self._rehash(user, password)
        return user

    def create_key(
        self,
        tenant: str,
        name: str,
        *,
        scopes: frozenset[Scope] = frozenset({"inference"}),
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        expires_at: int | None = None,
        plain: str | None = None,
    ) -> tuple[Key, str]:
        """A new API key: its row, and the plain key, which is not kept and can't be had again.

        `plain` is a key that was made elsewhere, in the form of `mint_key`.

        Raises:
            NotFound: no such tenant.
            Conflict: the given key is there already.
        """
        plain = plain or mint_key()
        try:
            with self._sessions.begin() as session:
                key = Key(
                    tenant=_tenant(session, tenant),
                    name=name,
                    prefix=key_prefix(plain),
                    hash=keyed_hash(self._key_secret, "key", plain),
                    scope=" ".join(sorted(scopes)),
                    requests_per_minute=requests_per_minute,
                    tokens_per_minute=tokens_per_minute,
                    expires_at=expires_at,
                )
                session.add(key)
        except IntegrityError:
            raise Conflict("There is this key already.") from None
        return key, plain

    def keys(self, *, tenant: str | None = None, after: str | None = None, limit: int = 100) -> Sequence[Key]:
        """Keys in the order they were made, revoked ones too, those behind the id `after`."""
        return self._page(Key, Key.tenant.has(name=tenant) if tenant else None, after, limit)

    def find_key(self, plain: str) -> Key | None:
        """The key that this is, also when it has expired or is revoked: the caller says which.

        Found by the public prefix; the secret part is compared by its hash, in constant time.
        """
        prefix = key_prefix(plain)
        if prefix is None:
            return None
        hashed = keyed_hash(self._key_secret, "key", plain)
        with self._sessions() as session:
            candidates = session.scalars(select(Key).where(Key.prefix == prefix)).all()
        return next((key for key in candidates if hmac.compare_digest(key.hash, hashed)), None)

    def revoke_key(self, identity: str, *, tenant: str | None = None) -> Key:
        """Revokes a key for good; one that is revoked stays as it is.

        Raises:
            NotFound: no such key in the tenant.
        """
        with self._sessions.begin() as session:
            key = _owned(session, Key, identity, tenant)
            key.revoked_at = key.revoked_at or unix_now()
        return key

    def revoke_token(self, jti: str, expires_at: int) -> bool:
        """Refuses a JWT from now on. False when it was refused already: of two that try, one gets True."""
        try:
            with self._sessions.begin() as session:
                session.add(RevokedToken(id=jti, expires_at=expires_at))
                session.flush()
                session.execute(delete(RevokedToken).where(RevokedToken.expires_at < unix_now()))
        except IntegrityError:
            return False
        return True

    def is_revoked(self, jti: str) -> bool:
        """Whether the JWT of this id was revoked."""
        with self._sessions() as session:
            return session.get(RevokedToken, jti) is not None

    def cache_salt(self, tenant: Tenant) -> str:
        """What keys the tenant's entries in the response cache and in the pods' KV prefix cache: 64 hex digits."""
        return keyed_hash(self._key_secret, "cache", tenant.id)

    def _hash(self, password: str) -> str:
        return off_loop(self._hasher.hash, password)

    def _rehash(self, user: User, password: str) -> None:
        rehashed = self._hash(password)
        with self._sessions.begin() as session:
            session.get_one(User, user.id).password_hash = rehashed

    def _insert(self, row: Row, conflict: str, *, param: str) -> Row:
        try:
            with self._sessions.begin() as session:
                session.add(row)
                session.flush()
                session.refresh(row)
        except IntegrityError:
            raise Conflict(conflict, param=param) from None
        return row

    def _page(self, kind: type[Row], condition: Any, after: str | None, limit: int) -> Sequence[Row]:
        query = select(kind).order_by(kind.id).limit(limit)
        if condition is not None:
            query = query.where(condition)
        if after is not None:
            query = query.where(kind.id > after)
        with self._sessions() as session:
            return session.scalars(query).all()


def _tenant(session: Session, name: str) -> Tenant:
    found = session.scalar(select(Tenant).where(Tenant.name == name)) if TENANT_NAME.fullmatch(name) else None
    if found is None:
        raise NotFound("There is no such tenant.", param="tenant")
    return found


def _get(session: Session, kind: type[Row], identity: str) -> Row | None:
    # Only what can be an id goes to the database: PostgreSQL fails on a NUL in a string.
    return session.get(kind, identity) if ID.fullmatch(identity) else None


def _owned(session: Session, kind: type[Owned], identity: str, tenant: str | None) -> Owned:
    row = _get(session, kind, identity)
    if row is None or (tenant is not None and row.tenant.name != tenant):
        raise NotFound(f"There is no such {kind.__name__.lower()}.")
    return row
