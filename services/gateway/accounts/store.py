"""The queries. Each method is one short transaction, or a part of the one that `Accounts.transaction` has opened; rows
come back detached, with their tenant loaded. Each raises `AccountsUnavailable` while the database can't be reached.

A change is given by name: a limit, `models` or `expires_at` of None is taken away, and what is not named stays.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from argon2 import PasswordHasher
from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.common.errors import Conflict, InvalidRequest, NotFound
from services.gateway.accounts.audit import Answers, AuditLog
from services.gateway.accounts.changes import KEY_CHANGES, RIGHTS, TENANT_CHANGES, USER_CHANGES, apply, known
from services.gateway.accounts.credentials import key_prefix, keyed_hash, matches, mint_key, off_loop
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.tables import ID, Key, RevokedToken, Role, Scope, Tenant, User, unix_now

PLATFORM = "platform"
"""The tenant of the people who run Forebay: its admins administer every tenant, others' only their own."""

TENANT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
USERNAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,127}", re.ASCII)

Row = TypeVar("Row", Tenant, User, Key)
Owned = TypeVar("Owned", User, Key)


class Accounts:
    """Who may come in. `tenant` is a tenant's name everywhere; None as a filter is every tenant.

    `audit` is the log of what admins did, `answers` keeps what their writes were answered.
    """

    def __init__(self, sessions: Sessions, *, key_secret: str, hasher: PasswordHasher) -> None:
        self.sessions = sessions
        self.audit = AuditLog(sessions)
        self.answers = Answers(sessions)
        self._key_secret = key_secret
        self._hasher = hasher
        self._nobody = off_loop(hasher.hash, "the password of a user that does not exist")

    @property
    def engine(self) -> Engine:
        return self.sessions.engine

    def transaction(self) -> AbstractContextManager[None]:
        """Makes one transaction of all the methods called within, of `audit` and `answers` too. No password may be
        hashed within: see `Sessions.transaction`."""
        return self.sessions.transaction()

    def close(self) -> None:
        """Closes the pooled connections."""
        self.engine.dispose()

    def keyed_hash(self, purpose: str, text: str) -> str:
        """HMAC of a text under the secret that keys the hashes of API keys: 64 hex digits, other ones for another
        purpose."""
        return keyed_hash(self._key_secret, purpose, text)

    def create_tenant(self, name: str, **given: Any) -> Tenant:
        """A new tenant, with what is given of `TENANT_CHANGES`. The name is a slug, since it labels metrics; `other` is
        the label of those beyond their cap.

        Raises:
            InvalidRequest: the name is no slug of 1 to 63 characters, or is `other`.
            Conflict: there is one of that name.
        """
        if not TENANT_NAME.fullmatch(name) or name == "other":
            reason = "must be 1 to 63 lower-case letters, digits and inner hyphens, and not 'other'"
            raise InvalidRequest(f"Invalid value for 'name': {reason}.", param="name")
        return self._insert(
            Tenant(name=name, **known(given, TENANT_CHANGES)), f"A tenant named '{name}' exists already.", param="name"
        )

    def tenants(self, *, only: str | None = None, after: str | None = None, limit: int = 100) -> Sequence[Tenant]:
        """Tenants in the order they were made, those behind the id `after`; of one name with `only`."""
        return self._page(Tenant, Tenant.name == only if only else None, after, limit)

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name.

        Raises:
            NotFound: there is none.
        """
        with self.sessions.read() as session:
            return _tenant(session, name)

    def update_tenant(self, name: str, **changes: Any) -> Tenant:
        """Changes what is given of `TENANT_CHANGES`.

        Raises:
            NotFound: no such tenant.
            Conflict: it is the platform's own, which can't be disabled.
        """
        if name == PLATFORM and changes.get("disabled"):
            raise Conflict(f"The tenant '{PLATFORM}' can't be disabled: nobody could enable it.", param="disabled")
        with self.sessions.write() as session:
            tenant = _tenant(session, name)
            apply(tenant, known(changes, TENANT_CHANGES))
        return tenant

    def delete_tenant(self, name: str) -> Tenant:
        """Deletes a tenant with its users and keys, for good. Audit log and ledger keep its name.

        Raises:
            NotFound: no such tenant.
            Conflict: it is the platform's own.
        """
        if name == PLATFORM:
            raise Conflict(f"The tenant '{PLATFORM}' can't be deleted.", param="name")
        with self.sessions.write() as session:
            tenant = _tenant(session, name)
            for kind in (Key, User):
                session.execute(delete(kind).where(kind.tenant_id == tenant.id))
            session.execute(delete(Tenant).where(Tenant.id == tenant.id))
        return tenant

    def create_user(
        self,
        tenant: str,
        username: str,
        password: str | None = None,
        role: Role = "member",
        *,
        password_hash: str | None = None,
        **rights: Any,
    ) -> User:
        """A new user, of whose password only an argon2 hash is kept; it may be given as that (`hash_password`).

        Raises:
            InvalidRequest: the user name has characters that are not allowed.
            NotFound: no such tenant.
            Conflict: the user name is taken, in this tenant or another.
        """
        if not USERNAME.fullmatch(username):
            reason = "must be 1 to 128 of a-z 0-9 . _ @ + - and begin with a letter or digit"
            raise InvalidRequest(f"Invalid value for 'username': {reason}.", param="username")
        if password_hash is None:
            password_hash = self.hash_password(password or "")
        owner = self.tenant(tenant)
        given = known(rights, RIGHTS)
        user = User(tenant_id=owner.id, username=username, password_hash=password_hash, role=role, **given)
        return self._insert(user, f"A user named '{username}' exists already.", param="username")

    def users(self, *, tenant: str | None = None, after: str | None = None, limit: int = 100) -> Sequence[User]:
        """Users in the order they were made, those behind the id `after`."""
        return self._page(User, User.tenant.has(name=tenant) if tenant else None, after, limit)

    def user(self, identity: str) -> User | None:
        """The user of that id."""
        with self.sessions.read() as session:
            return _get(session, User, identity)

    def find_user(self, username: str) -> User | None:
        """The user of that name."""
        if not USERNAME.fullmatch(username):
            return None
        with self.sessions.read() as session:
            return session.scalar(select(User).where(User.username == username))

    def owned_user(self, identity: str, *, tenant: str | None = None) -> User:
        """The user of that id.

        Raises:
            NotFound: no such user in the tenant.
        """
        with self.sessions.read() as session:
            return _owned(session, User, identity, tenant)

    def update_user(
        self, identity: str, *, tenant: str | None = None, password: str | None = None, **changes: Any
    ) -> User:
        """Changes what is given of `USER_CHANGES`, or sets a new password. Every token that the user holds ends with a
        change of password or role, and when the user is disabled or enabled.

        Raises:
            NotFound: no such user in the tenant.
        """
        if password is not None:
            changes["password_hash"] = self.hash_password(password)
        with self.sessions.write() as session:
            user = _owned(session, User, identity, tenant)
            given = known(changes, USER_CHANGES)
            apply(user, given)
            if not given.keys().isdisjoint({"password_hash", "role", "disabled"}):
                # Computed by the database, so that two changes at once can't cancel each other out.
                user.token_epoch = User.token_epoch + 1
            session.flush()
            session.refresh(user)
        return user

    def delete_user(self, identity: str, *, tenant: str | None = None) -> User:
        """Deletes a user for good, whose tokens end with it.

        Raises:
            NotFound: no such user in the tenant.
        """
        with self.sessions.write() as session:
            user = _owned(session, User, identity, tenant)
            session.execute(delete(User).where(User.id == identity))
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
        expires_at: int | None = None,
        plain: str | None = None,
        **rights: Any,
    ) -> tuple[Key, str]:
        """A new API key: its row, and the plain key, which is not kept and can't be had again.

        `plain` is a key that was made elsewhere, in the form of `mint_key`.

        Raises:
            NotFound: no such tenant.
            Conflict: the given key is there already.
        """
        with self.sessions.read() as session:
            owner = _tenant(session, tenant)
        key = Key(tenant_id=owner.id, name=name, scope=_scope(scopes), expires_at=expires_at, **known(rights, RIGHTS))
        return self._add_key(key, plain or mint_key())

    def rotate_key(self, identity: str, *, tenant: str | None = None, overlap: int = 0) -> tuple[Key, str]:
        """A new key in the place of an old one, with the same name, rights and expiry; the old one is good for
        `overlap` seconds more, or until it expires. The new one is counted on its own limits from nothing.

        Raises:
            NotFound: no such key in the tenant.
            Conflict: the key is not good any more.
        """
        now = unix_now()
        with self.sessions.write() as session:
            old = _owned(session, Key, identity, tenant)
            if old.revoked_at is not None or old.expired(now):
                raise Conflict("The key has been revoked or has expired; create a new one.")
            copied = {name: getattr(old, name) for name in ("tenant_id", "name", "scope", "expires_at", "disabled")}
            rights = {name: getattr(old, name) for name in RIGHTS}
            plain = mint_key()
            key = self._sealed(Key(rotated_from=old.id, **copied, **rights), plain)
            session.add(key)
            old.expires_at = min(old.expires_at or now + overlap, now + overlap)
            session.flush()
            session.refresh(key)
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
        hashed = self.keyed_hash("key", plain)
        with self.sessions.read() as session:
            candidates = session.scalars(select(Key).where(Key.prefix == prefix)).all()
        return next((key for key in candidates if hmac.compare_digest(key.hash, hashed)), None)

    def key(self, identity: str, *, tenant: str | None = None) -> Key:
        """The key of that id.

        Raises:
            NotFound: no such key in the tenant.
        """
        with self.sessions.read() as session:
            return _owned(session, Key, identity, tenant)

    def update_key(self, identity: str, *, tenant: str | None = None, **changes: Any) -> Key:
        """Changes what is given of `KEY_CHANGES`.

        Raises:
            NotFound: no such key in the tenant.
        """
        given = known(changes, KEY_CHANGES)
        if "scopes" in given:
            given["scope"] = _scope(given.pop("scopes"))
        with self.sessions.write() as session:
            key = _owned(session, Key, identity, tenant)
            apply(key, given)
        return key

    def revoke_key(self, identity: str, *, tenant: str | None = None) -> Key:
        """Revokes a key for good; one that is revoked stays as it is.

        Raises:
            NotFound: no such key in the tenant.
        """
        with self.sessions.write() as session:
            key = _owned(session, Key, identity, tenant)
            key.revoked_at = key.revoked_at or unix_now()
        return key

    def revoke_token(self, jti: str, expires_at: int) -> bool:
        """Refuses a JWT from now on. False when it was refused already: of two that try, one gets True."""
        try:
            with self.sessions.write() as session:
                session.add(RevokedToken(id=jti, expires_at=expires_at))
                session.flush()
                session.execute(delete(RevokedToken).where(RevokedToken.expires_at < unix_now()))
        except IntegrityError:
            return False
        return True

    def is_revoked(self, jti: str) -> bool:
        """Whether the JWT of this id was revoked."""
        with self.sessions.read() as session:
            return session.get(RevokedToken, jti) is not None

    def cache_salt(self, tenant: Tenant) -> str:
        """What keys the tenant's entries in the response cache and in the pods' KV prefix cache: 64 hex digits."""
        return self.keyed_hash("cache", tenant.id)

    def hash_password(self, password: str) -> str:
        """The argon2 hash of a password; takes tens of milliseconds, outside of gevent's loop."""
        return off_loop(self._hasher.hash, password)

    def _rehash(self, user: User, password: str) -> None:
        rehashed = self.hash_password(password)
        with self.sessions.write() as session:
            session.get_one(User, user.id).password_hash = rehashed

    def _sealed(self, key: Key, plain: str) -> Key:
        key.prefix, key.hash = key_prefix(plain) or "", self.keyed_hash("key", plain)
        return key

    def _add_key(self, key: Key, plain: str) -> tuple[Key, str]:
        try:
            with self.sessions.write() as session:
                session.add(self._sealed(key, plain))
                session.flush()
                session.refresh(key)
        except IntegrityError:
            raise Conflict("There is this key already.") from None
        return key, plain

    def _insert(self, row: Row, conflict: str, *, param: str) -> Row:
        try:
            with self.sessions.write() as session:
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
        with self.sessions.read() as session:
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


def _scope(scopes: frozenset[Scope]) -> str:
    return " ".join(sorted(scopes))
