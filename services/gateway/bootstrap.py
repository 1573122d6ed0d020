"""First start: an admin with a generated password, and a demo tenant with a key. Doing it again changes nothing.

`python -m services.gateway.bootstrap --key-file PATH` does it from a shell or a Kubernetes Job, with the settings of
the environment, and prints what there is now as one line of JSON; the password only by the run that made it.
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
from services.common.settings import GatewaySettings
from services.gateway.accounts import PLATFORM, Accounts, open_accounts

ADMIN = "admin"
DEMO = "demo"
"""Name of the demo tenant, and of its key that this module looks after; other keys of the tenant are left alone."""


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
    accounts = open_accounts(
        settings.database_url,
        pool_size=settings.database_pool_size,
        key_secret=settings.key_secret.get_secret_value(),
    )
    key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(accounts), _locked(key_file.parent):
        for tenant in (PLATFORM, DEMO):
            _ensure_tenant(accounts, tenant)
        password = _ensure_admin(accounts, reset=reset_admin)
        return Bootstrapped(ADMIN, password, _ensure_demo_key(accounts, key_file))


def _ensure_tenant(accounts: Accounts, name: str) -> None:
    if accounts.tenants(only=name):
        return
    try:
        accounts.create_tenant(name)
    except Conflict:
        return  # another process was faster


def _ensure_admin(accounts: Accounts, *, reset: bool) -> str | None:
    admin = accounts.find_user(ADMIN)
    if admin is not None and not reset:
        return None
    password = secrets.token_urlsafe(18)
    if admin is not None:
        accounts.update_user(admin.id, disabled=False, password=password)
        return password
    try:
        accounts.create_user(PLATFORM, ADMIN, password, "admin")
    except Conflict:
        return None  # another process was faster, and shows the password
    return password


def _ensure_demo_key(accounts: Accounts, key_file: Path) -> str:
    plain = key_file.read_text().strip() if key_file.exists() else ""
    known = accounts.find_key(plain)
    if known is not None and known.revoked_at is None and not known.expired(time.time()):
        key_file.chmod(0o600)
        return plain
    fresh, plain = accounts.create_key(DEMO, DEMO)
    _write_secret(key_file, plain)
    # Only now, so that a process that dies on the way leaves no file with a key that is not good.
    for key in _every_demo_key(accounts):
        if key != fresh.id:
            accounts.revoke_key(key)
    return plain


def _every_demo_key(accounts: Accounts) -> Iterator[str]:
    after: str | None = None
    while page := accounts.keys(tenant=DEMO, after=after):
        yield from (key.id for key in page if key.name == DEMO and key.revoked_at is None)
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


def main(arguments: list[str] | None = None) -> int:
    """The command line. Exit status 0, or 2 when settings are missing or wrong."""
    parser = argparse.ArgumentParser(prog="python -m services.gateway.bootstrap", description=__doc__)
    parser.add_argument("--key-file", type=Path, required=True, help="file that holds the demo tenant's API key")
    parser.add_argument("--reset-admin", action="store_true", help="give the admin a new password")
    options = parser.parse_args(arguments)
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        wrong = "; ".join(f"FOREBAY_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors(include_input=False))
        sys.stderr.write(f"The settings are not complete: {wrong}\n")
        return 2
    made = bootstrap(settings, options.key_file, reset_admin=options.reset_admin)
    sys.stdout.write(json.dumps({**asdict(made), "key_file": str(options.key_file)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
