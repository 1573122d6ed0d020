"""Tenants: the customers of the service, to whom users and keys belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete

from services.common.errors import Conflict, InvalidRequest
from services.gateway.accounts.changes import TENANT_CHANGES, apply, known
from services.gateway.accounts.rows import TENANT_NAME, insert, page, tenant_named
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.tables import Key, Tenant, User

PLATFORM = "platform"
"""The tenant of the people who run Forebay: its admins administer every tenant, others' only their own."""


class Tenants:
    """Known by their names everywhere."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def create(self, name: str, **given: Any) -> Tenant:
        """A new tenant, with what is given of `TENANT_CHANGES`. The name is a slug, since it labels metrics; `other` is
        the label of those beyond their cap.

        Raises:
            InvalidRequest: the name is no slug of 1 to 63 characters, or is `other`.
            Conflict: there is one of that name.
        """
        if not TENANT_NAME.fullmatch(name) or name == "other":
            reason = "must be 1 to 63 lower-case letters, digits and inner hyphens, and not 'other'"
            raise InvalidRequest(f"Invalid value for 'name': {reason}.", param="name")
        tenant = Tenant(name=name, **known(given, TENANT_CHANGES))
        return insert(self._sessions, tenant, f"A tenant named '{name}' exists already.", param="name")

    def page(self, *, only: str | None = None, after: str | None = None, limit: int = 100) -> Sequence[Tenant]:
        """Tenants in the order they were made, those behind the id `after`; of one name with `only`."""
        wanted = [Tenant.name == only] if only else []
        return page(self._sessions, Tenant, *wanted, after=after, limit=limit)

    def get(self, name: str) -> Tenant:
        """The tenant of that name.

        Raises:
            NotFound: there is none.
        """
        with self._sessions.read() as session:
            return tenant_named(session, name)

    def update(self, name: str, **changes: Any) -> Tenant:
        """Changes what is given of `TENANT_CHANGES`.

        Raises:
            NotFound: no such tenant.
            Conflict: it is the platform's own, which can't be disabled.
        """
        if name == PLATFORM and changes.get("disabled"):
            raise Conflict(f"The tenant '{PLATFORM}' can't be disabled: nobody could enable it.", param="disabled")
        with self._sessions.write() as session:
            tenant = tenant_named(session, name)
            apply(tenant, known(changes, TENANT_CHANGES))
        return tenant

    def delete(self, name: str) -> Tenant:
        """Deletes a tenant with its users and keys, for good. Audit log and ledger keep its name.

        Raises:
            NotFound: no such tenant.
            Conflict: it is the platform's own.
        """
        if name == PLATFORM:
            raise Conflict(f"The tenant '{PLATFORM}' can't be deleted.", param="name")
        with self._sessions.write() as session:
            tenant = tenant_named(session, name)
            for kind in (Key, User):
                session.execute(delete(kind).where(kind.tenant_id == tenant.id))
            session.execute(delete(Tenant).where(Tenant.id == tenant.id))
        return tenant
