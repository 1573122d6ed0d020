"""What admins did, and what their writes were answered, in the same transactions as the writes themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from services.common.errors import Conflict
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.tables import AuditEntry, StoredAnswer, unix_now


class AuditLog:
    """Grows only: there is no method that changes or removes an entry."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def record(
        self,
        *,
        actor: str,
        tenant: str,
        action: str,
        target: str,
        detail: Mapping[str, Any] | None = None,
        request_id: str | None = None,
    ) -> AuditEntry:
        """Adds an entry. `actor` is a principal's subject, `tenant` the name of the one it happened to, `target` an
        id; `detail` is what JSON can hold, and no secret."""
        entry = AuditEntry(
            actor=actor,
            tenant=tenant,
            action=action,
            target=target,
            detail=dict(detail or {}),
            request_id=request_id,
        )
        with self._sessions.write() as session:
            session.add(entry)
        return entry

    def entries(
        self,
        *,
        tenant: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        since: int | None = None,
        until: int | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[AuditEntry]:
        """Entries, newest first: those older than the id `after`, made at `since` or later and before `until`, in Unix
        seconds."""
        query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
        wanted = {AuditEntry.tenant: tenant, AuditEntry.actor: actor, AuditEntry.action: action}
        query = query.where(*(column == value for column, value in wanted.items() if value is not None))
        if since is not None:
            query = query.where(AuditEntry.created_at >= since)
        if until is not None:
            query = query.where(AuditEntry.created_at < until)
        if after is not None:
            query = query.where(AuditEntry.id < after)
        with self._sessions.read() as session:
            return session.scalars(query).all()


class Answers:
    """What writes were answered, by a hash of who sent which `Idempotency-Key`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def find(self, identity: str) -> StoredAnswer | None:
        """The answer of that id, unless it has expired."""
        with self._sessions.read() as session:
            found = session.get(StoredAnswer, identity)
        return found if found is not None and found.expires_at > unix_now() else None

    def keep(self, identity: str, *, fingerprint: str, status: int, body: str, expires_at: int) -> None:
        """Keeps an answer until the Unix second `expires_at`, and drops those whose time is over.

        Raises:
            Conflict: there is one of that id.
        """
        kept = StoredAnswer(id=identity, fingerprint=fingerprint, status=status, body=body, expires_at=expires_at)
        try:
            with self._sessions.write() as session:
                session.execute(delete(StoredAnswer).where(StoredAnswer.expires_at <= unix_now()))
                session.add(kept)
                session.flush()
        except IntegrityError:
            raise Conflict("A request with this Idempotency-Key has just been answered.") from None
