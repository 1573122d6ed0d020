"""What may be set on tenants, users and keys, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.cache.windows import LIMITS
from services.gateway.accounts.tables import Key, Tenant, User

RIGHTS = frozenset({*LIMITS, "models"})
TENANT_CHANGES = RIGHTS | {"weight", "share_cache", "disabled"}
USER_CHANGES = RIGHTS | {"role", "disabled", "password_hash"}
KEY_CHANGES = RIGHTS | {"name", "scopes", "expires_at", "disabled"}
MAY_BE_NONE = RIGHTS | {"expires_at"}


def known(changes: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The changes as they are kept, models as a sorted list. None for what can't be none is no change.

    Raises:
        TypeError: one is not among `names`. A misspelt limit must not silently be no limit.
    """
    unknown = changes.keys() - names
    if unknown:
        raise TypeError(f"there is nothing named {', '.join(sorted(unknown))} to set")
    kept = {name: value for name, value in changes.items() if value is not None or name in MAY_BE_NONE}
    if kept.get("models") is not None:
        kept["models"] = sorted(kept["models"])
    return kept


def apply(row: Tenant | User | Key, changes: Mapping[str, Any]) -> None:
    """Sets the columns of these names."""
    for name, value in changes.items():
        setattr(row, name, value)
