"""API keys: what programs come in with."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from services.common.errors import Conflict
from services.gateway.accounts.changes import KEY_CHANGES, RIGHTS, apply, known
from services.gateway.accounts.credentials import key_prefix, keyed_hash, mint_key
from services.gateway.accounts.rows import insert, owned, page_of, tenant_named
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.tables import Key, Scope, unix_now


class Keys:
    """Of each key its public prefix and a hash are kept, keyed by `secret`."""

    def __init__(self, sessions: Sessions, secret: str) -> None:
        self._sessions = sessions
        self._secret = secret

    def create(
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
        with self._sessions.read() as session:
            owner = tenant_named(session, tenant)
        plain = plain or mint_key()
        key = Key(tenant_id=owner.id, name=name, scope=_scope(scopes), expires_at=expires_at, **known(rights, RIGHTS))
        return insert(self._sessions, self._sealed(key, plain), "There is this key already."), plain

    def rotate(self, identity: str, *, tenant: str | None = None, overlap: int = 0) -> tuple[Key, str]:
        """A new key in the place of an old one, with the same name, rights and expiry; the old one is good for
        `overlap` seconds more, or until it expires. The new one is counted on its own limits from nothing.

        Raises:
            NotFound: no such key in the tenant.
            Conflict: the key is not good any more.
        """
        now = unix_now()
        with self._sessions.write() as session:
            old = owned(session, Key, identity, tenant)
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

    def page(self, *, tenant: str | None = None, after: str | None = None, limit: int = 100) -> Sequence[Key]:
        """Keys in the order they were made, revoked ones too, those behind the id `after`."""
        return page_of(self._sessions, Key, tenant, after=after, limit=limit)

    def get(self, identity: str, *, tenant: str | None = None) -> Key:
        """The key of that id.

        Raises:
            NotFound: no such key in the tenant.
        """
        with self._sessions.read() as session:
            return owned(session, Key, identity, tenant)

    def find(self, plain: str) -> Key | None:
        """The key that this is, also when it has expired or is revoked: the caller says which.

        Found by the public prefix; the secret part is compared by its hash, in constant time.
        """
        prefix = key_prefix(plain)
        if prefix is None:
            return None
        hashed = self._hash(plain)
        with self._sessions.read() as session:
            candidates = session.scalars(select(Key).where(Key.prefix == prefix)).all()
        return next((key for key in candidates if hmac.compare_digest(key.hash, hashed)), None)

    def update(self, identity: str, *, tenant: str | None = None, **changes: Any) -> Key:
        """Changes what is given of `KEY_CHANGES`.

        Raises:
            NotFound: no such key in the tenant.
        """
        given = known(changes, KEY_CHANGES)
        if "scopes" in given:
            given["scope"] = _scope(given.pop("scopes"))
        with self._sessions.write() as session:
            key = owned(session, Key, identity, tenant)
            apply(key, given)
        return key

    def revoke(self, identity: str, *, tenant: str | None = None) -> Key:
        """Revokes a key for good; one that is revoked stays as it is.

        Raises:
            NotFound: no such key in the tenant.
        """
        with self._sessions.write() as session:
            key = owned(session, Key, identity, tenant)
            key.revoked_at = key.revoked_at or unix_now()
        return key

    def _sealed(self, key: Key, plain: str) -> Key:
        key.prefix, key.hash = key_prefix(plain) or "", self._hash(plain)
        return key

    def _hash(self, plain: str) -> str:
        return keyed_hash(self._secret, "key", plain)


def _scope(scopes: frozenset[Scope]) -> str:
    return " ".join(sorted(scopes))
