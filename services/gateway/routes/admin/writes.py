"""How the admin API writes: the effect, its entry in the audit log and the answer that is kept for a repetition are one
transaction, kept as a whole or not at all.

With an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header) the same request of the same actor is answered for
a day as it was the first time, without doing anything again. A new key or password stands in some answers, so each is
sealed (Fernet: AES-CBC and HMAC) by what only the key secret and the client's own Idempotency-Key give together; the
latter is not kept, so neither the database nor the settings nor both of them show what was answered.
"""

from __future__ import annotations

import json
import logging
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.fernet import Fernet
from flask import Response, g, jsonify, request

from services.common.errors import Conflict, IdempotencyMismatch, InvalidRequest
from services.gateway.accounts.tables import unix_now
from services.gateway.routes.admin.desk import Desk, me

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEPT = 86_400
"""Seconds that an answer is kept."""

EVERYBODY = "*"

log = logging.getLogger("forebay.audit")


@dataclass(frozen=True)
class Written:
    """What a write did: its answer, and its entry in the audit log."""

    action: str
    """`noun.verb`."""
    target: str
    """The id of what it was done to."""
    tenant: str
    body: dict[str, Any]
    status: int = 200
    detail: dict[str, Any] = field(default_factory=dict)
    """What was given or changed; no secret."""
    forget: str | None = None
    """Whose credentials may not be good any more: a principal's subject, or `EVERYBODY`."""


def write(desk: Desk, perform: Callable[[], Written]) -> Response:
    """Performs a write, once. `perform` runs in the transaction, where nothing may wait for anything but the database.

    Raises:
        IdempotencyMismatch: the Idempotency-Key was used for something else.
    """
    slot = _Slot.of(desk)
    try:
        with desk.accounts.transaction():
            kept = slot.find() if slot is not None else None
            if kept is not None:
                return kept
            written = perform()
            desk.accounts.audit.record(
                actor=me().subject,
                tenant=written.tenant,
                action=written.action,
                target=written.target,
                detail=written.detail,
                request_id=g.request_id,
            )
            if slot is not None:
                slot.keep(written)
    except Conflict:
        # It may be the same request that runs into itself, where databases let both of them begin.
        kept = slot.find() if slot is not None else None
        if kept is None:
            raise
        return kept
    if written.forget is not None:
        desk.identifier.forget(None if written.forget == EVERYBODY else written.forget)
    log.info(
        "admin action",
        extra={
            "actor": me().subject,
            "action": written.action,
            "target": written.target,
            "tenant": written.tenant,
        },
    )
    return _response(written.body, written.status)


@dataclass(frozen=True)
class _Slot:
    """Where the answer to one request of one actor lies."""

    desk: Desk
    identity: str
    fingerprint: str
    seal: Fernet

    @classmethod
    def of(cls, desk: Desk) -> _Slot | None:
        """The current request's, None when it has no Idempotency-Key.

        Raises:
            InvalidRequest: it has one that is empty, too long, or not printable ASCII.
        """
        given = request.headers.get(HEADER)
        if given is None:
            return None
        if not (0 < len(given) <= 255 and given.isascii() and given.isprintable()):
            raise InvalidRequest(f"{HEADER} must be 1 to 255 printable ASCII characters.", param=HEADER)
        hashed = desk.accounts.keyed_hash
        name = f"{me().tenant_id} {me().subject} {given}"
        what = f"{request.method} {request.full_path} {sha256(request.get_data()).hexdigest()}"
        seal = urlsafe_b64encode(bytes.fromhex(hashed("seal", name)))
        return cls(desk, hashed("write", name), hashed("fingerprint", what), Fernet(seal))

    def find(self) -> Response | None:
        """The answer that was given, None when there was none within the time.

        Raises:
            IdempotencyMismatch: it was given to another request.
        """
        kept = self.desk.accounts.answers.find(self.identity)
        if kept is None:
            return None
        if kept.fingerprint != self.fingerprint:
            raise IdempotencyMismatch(f"This {HEADER} was used for another request.", param=HEADER)
        response = _response(json.loads(self.seal.decrypt(kept.body)), kept.status)
        response.headers[REPLAYED] = "true"
        return response

    def keep(self, written: Written) -> None:
        sealed = self.seal.encrypt(json.dumps(written.body).encode()).decode()
        self.desk.accounts.answers.keep(
            self.identity,
            fingerprint=self.fingerprint,
            status=written.status,
            body=sealed,
            expires_at=unix_now() + KEPT,
        )


def _response(body: dict[str, Any], status: int) -> Response:
    response = jsonify(body)
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"  # a secret may stand in it
    return response


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What a change changed, for the audit log: old and new value by field."""
    return {name: [before[name], value] for name, value in after.items() if before.get(name) != value}
