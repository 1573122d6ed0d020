"""First start: an admin with a generated password, and a demo tenant with a key. Doing it again changes nothing.

`python -m services.gateway.bootstrap --key-file PATH` does it from a shell, with the settings of the environment, and
prints what there is now as one line of JSON; the password only by the run that made it.

In a cluster the password and the key are made before, in a Secret: `--given-password FILE --given-key FILE` takes them
from there, and prints neither. With `--wait` it waits until the database can be opened, and the log says for what.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from services.common.errors import Conflict
from services.common.settings import GatewaySettings, wrong_settings
from services.common.telemetry import configure_logging
from services.gateway.accounts import PLATFORM, Accounts, open_accounts
from services.gateway.accounts.credentials import key_prefix
from services.gateway.accounts.database import await_accounts

ADMIN = "admin"
DEMO = "demo"
"""Name of the demo tenant, and of its key that this module looks after; other keys of the tenant are left alone."""

LOOK = 0.1
"""Seconds between looks whether a database that is waited for is open."""


@dataclass(frozen=True)
class Bootstrapped:
    """What there is now. `admin_password` is None where the admin was there already: only its hash is kept."""

    admin_username: str
    admin_password: str | None
    demo_key: str


def bootstrap(settings: GatewaySettings, key_file: Path, *, reset_admin: bool = False) -> Bootstrapped:
    """Makes what is missing of the admin, the demo tenant and its key, which stands in `key_file` (mode 0600).

    A key file that is gone or whose key is not good any more gets a new key, and the old demo keys are revoked.
    `reset_admin` gives the admin a new password and enables it, for whoever has lost the first.

    Raises:
        OSError: the key file can't be read or written.
        sqlalchemy.exc.SQLAlchemyError: the database can't be reached or written.
    """
    accounts = _open(settings)
    key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(accounts), _locked(key_file.parent):
        for tenant in (PLATFORM, DEMO):
            _ensure_tenant(accounts, tenant)
        password = _ensure_admin(accounts, reset=reset_admin)
        return Bootstrapped(ADMIN, password, _ensure_demo_key(accounts, key_file))


def bootstrap_given(settings: GatewaySettings, password: str, key: str, *, wait: bool = False) -> None:
    """Makes what is missing of the admin, the demo tenant and its key, with a password and a key that others made.

    The password is only for an admin that is not there yet: one that was changed since stays. Another key than before
    takes the place of the old one, which is revoked; a given key that was revoked stays so. `wait`: where the database
    can't be opened, until it can.

    Raises:
        ValueError: the password is empty, or the key has not the form of one.
        sqlalchemy.exc.SQLAlchemyError: the database can't be reached or written.
    """
    if not password:
        raise ValueError("the given password is empty")
    if key_prefix(key) is None:
        raise ValueError("the given key has not the form of one: fb-, 8 of a-z2-7, -, 43 of A-Za-z0-9_-")
    accounts = _open(settings, wait=wait)
    with closing(accounts):
        for tenant in (PLATFORM, DEMO):
            _ensure_tenant(accounts, tenant)
        _ensure_admin(accounts, reset=False, given=password)
        if accounts.keys.find(key) is None:
            try:
                accounts.keys.create(DEMO, DEMO, plain=key)
            except Conflict:
                return  # another process was faster
            _revoke_demo_keys(accounts, but=key_prefix(key))


def _open(settings: GatewaySettings, *, wait: bool = False) -> Accounts:
    accounts = (await_accounts if wait else open_accounts)(
        settings.database_url,
        pool_size=settings.database_pool_size,
        key_secret=settings.key_secret.get_secret_value(),
        wait=settings.database_timeout,
    )
    while accounts.sessions.closed is not None:
        time.sleep(LOOK)
    return accounts


def _ensure_tenant(accounts: Accounts, name: str) -> None:
    if accounts.tenants.page(only=name):
        return
    try:
        accounts.tenants.create(name)
    except Conflict:
        return  # another process was faster


def _ensure_admin(accounts: Accounts, *, reset: bool, given: str | None = None) -> str | None:
    admin = accounts.users.by_name(ADMIN)
    if admin is not None and not reset:
        return None
    password = given or secrets.token_urlsafe(18)
    if admin is not None:
        accounts.users.update(admin.id, disabled=False, password=password)
        return password
    try:
        accounts.users.create(PLATFORM, ADMIN, password, "admin")
    except Conflict:
        return None  # another process was faster, and shows the password
    return password


def _ensure_demo_key(accounts: Accounts, key_file: Path) -> str:
    plain = key_file.read_text().strip() if key_file.exists() else ""
    known = accounts.keys.find(plain)
    if known is not None and known.revoked_at is None and not known.expired(time.time()):
        key_file.chmod(0o600)
        return plain
    fresh, plain = accounts.keys.create(DEMO, DEMO)
    _write_secret(key_file, plain)
    # Only now, so that a process that dies on the way leaves no file with a key that is not good.
    _revoke_demo_keys(accounts, but=fresh.prefix)
    return plain


def _revoke_demo_keys(accounts: Accounts, *, but: str | None) -> None:
    after: str | None = None
    while page := accounts.keys.page(tenant=DEMO, after=after):
        for key in page:
            if key.name == DEMO and key.revoked_at is None and key.prefix != but:
                accounts.keys.revoke(key.id)
        after = page[-1].id


def _write_secret(path: Path, text: str) -> None:
    """Writes the file so that whoever reads it finds the old text or the new, and no other user finds either."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One bootstrap at a time for one folder: two would each revoke the key that the other has just written."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    return path.read_text().strip()


def main(arguments: list[str] | None = None) -> int:
    """The command line. Exit status 0, or 2 when settings or what is given are missing or wrong."""
    parser = argparse.ArgumentParser(prog="python -m services.gateway.bootstrap", description=__doc__)
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument(
        "--key-file", type=Path, help="file that holds the demo tenant's API key, made where it is missing"
    )
    key.add_argument("--given-key", type=Path, help="file with an API key that becomes the demo tenant's")
    parser.add_argument("--given-password", type=Path, help="file with the admin's first password")
    parser.add_argument("--reset-admin", action="store_true", help="give the admin a new password")
    parser.add_argument("--wait", action="store_true", help="wait until the database can be opened (with --given-key)")
    options = parser.parse_args(arguments)
    if bool(options.given_key) != bool(options.given_password):
        parser.error("--given-key and --given-password go together")
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        wrong = "; ".join(wrong_settings(error))
        sys.stderr.write(f"The settings are not complete: {wrong}\n")
        return 2
    if options.given_key:
        if options.wait:
            configure_logging("bootstrap", settings)
        try:
            given = _read(options.given_password), _read(options.given_key)
            bootstrap_given(settings, *given, wait=options.wait)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"Nothing was made: {error}\n")
            return 2
        return 0
    made = bootstrap(settings, options.key_file, reset_admin=options.reset_admin)
    sys.stdout.write(json.dumps({**asdict(made), "key_file": str(options.key_file)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
