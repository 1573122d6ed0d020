"""Log-in tokens that are refused before their time is over."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.tables import RevokedToken, unix_now


class RevokedTokens:
    """Known by their `jti`, and kept until they would have expired."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def add(self, jti: str, expires_at: int) -> bool:
        """Refuses a JWT from now on. False when it was refused already: of two that try, one gets True."""
        try:
            with self._sessions.write() as session:
                session.add(RevokedToken(id=jti, expires_at=expires_at))
                session.flush()
                session.execute(delete(RevokedToken).where(RevokedToken.expires_at < unix_now()))
        except IntegrityError:
            return False
        return True

    def has(self, jti: str) -> bool:
        """Whether the JWT of this id was revoked."""
        with self._sessions.read() as session:
            return session.get(RevokedToken, jti) is not None
