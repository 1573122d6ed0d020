"""Users: the people of a tenant, who log in with a name and a password."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from argon2 import PasswordHasher
from sqlalchemy import delete, select

from services.common.errors import InvalidRequest
from services.gateway.accounts.changes import RIGHTS, USER_CHANGES, apply, known
from services.gateway.accounts.credentials import matches, off_loop
from services.gateway.accounts.rows import by_id, insert, owned, page_of, tenant_named
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.tables import Role, User

USERNAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,127}", re.ASCII)


class Users:
    """Of each password only an argon2 hash is kept."""

    def __init__(self, sessions: Sessions, hasher: PasswordHasher) -> None:
        self._sessions = sessions
        self._hasher = hasher
        self._nobody = off_loop(hasher.hash, "the password of a user that does not exist")

    def create(
        self,
        tenant: str,
        username: str,
        password: str | None = None,
        role: Role = "member",
        *,
        password_hash: str | None = None,
        **rights: Any,
    ) -> User:
        """A new user, whose password may be given as its hash too (`hash_password`).

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
        with self._sessions.read() as session:
            owner = tenant_named(session, tenant)
        given = known(rights, RIGHTS)
        user = User(tenant_id=owner.id, username=username, password_hash=password_hash, role=role, **given)
        return insert(self._sessions, user, f"A user named '{username}' exists already.", param="username")

    def page(self, *, tenant: str | None = None, after: str | None = None, limit: int = 100) -> Sequence[User]:
        """Users in the order they were made, those behind the id `after`."""
        return page_of(self._sessions, User, tenant, after=after, limit=limit)

    def get(self, identity: str, *, tenant: str | None = None) -> User:
        """The user of that id.

        Raises:
            NotFound: no such user in the tenant.
        """
        with self._sessions.read() as session:
            return owned(session, User, identity, tenant)

    def by_id(self, identity: str) -> User | None:
        """The user of that id, where there is one."""
        with self._sessions.read() as session:
            return by_id(session, User, identity)

    def by_name(self, username: str) -> User | None:
        """The user of that name, where there is one."""
        if not USERNAME.fullmatch(username):
            return None
        with self._sessions.read() as session:
            return session.scalar(select(User).where(User.username == username))

    def update(self, identity: str, *, tenant: str | None = None, password: str | None = None, **changes: Any) -> User:
        """Changes what is given of `USER_CHANGES`, or sets a new password. Every token that the user holds ends with a
        change of password or role, and when the user is disabled or enabled.

        Raises:
            NotFound: no such user in the tenant.
        """
        if password is not None:
            changes["password_hash"] = self.hash_password(password)
        with self._sessions.write() as session:
            user = owned(session, User, identity, tenant)
            given = known(changes, USER_CHANGES)
            apply(user, given)
            if not given.keys().isdisjoint({"password_hash", "role", "disabled"}):
                # Computed by the database, so that two changes at once can't cancel each other out.
                user.token_epoch = User.token_epoch + 1
            session.flush()
            session.refresh(user)
        return user

    def delete(self, identity: str, *, tenant: str | None = None) -> User:
        """Deletes a user for good, whose tokens end with it.

        Raises:
            NotFound: no such user in the tenant.
        """
        with self._sessions.write() as session:
            user = owned(session, User, identity, tenant)
            session.execute(delete(User).where(User.id == identity))
        return user

    def verify(self, username: str, password: str) -> User | None:
        """The user whose name and password these are, None if they are wrong or the user is disabled.

        A name that does not exist takes as long as a wrong password: the time must not tell which names exist.
        """
        user = self.by_name(username)
        right = off_loop(matches, self._hasher, user.password_hash if user else self._nobody, password)
        if user is None or not right or user.disabled:
            return None
        if self._hasher.check_needs_rehash(user.password_hash):
            self._rehash(user, password)
        return user

    def hash_password(self, password: str) -> str:
        """The argon2 hash of a password; takes tens of milliseconds, outside of gevent's loop."""
        return off_loop(self._hasher.hash, password)

    def _rehash(self, user: User, password: str) -> None:
        rehashed = self.hash_password(password)
        with self._sessions.write() as session:
            session.get_one(User, user.id).password_hash = rehashed
