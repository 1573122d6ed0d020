"""Where settings come from: environment variables `FOREBAY_<NAME>`.

A secret may also be given as a file: `FOREBAY_<NAME>_FILE` names it, which is how Kubernetes and Compose hand secrets
over.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode, PydanticBaseSettingsSource

PREFIX = "FOREBAY_"
MAY_HOLD_CREDENTIALS = "may hold credentials"
"""Marks a URL in which a user's name and password may stand, which makes it a secret."""


def _parts(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaSeparated = Annotated[list[str], NoDecode, BeforeValidator(_parts)]
"""A list whose parts stand in the variable with commas between them, where other lists are JSON."""


class SecretFiles(PydanticBaseSettingsSource):
    """Reads `FOREBAY_<NAME>_FILE` for the fields that are secrets."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE")
        if not path or not is_secret(field):
            return None, field_name, False
        return Path(path).read_text().strip(), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


def is_secret(field: FieldInfo) -> bool:
    """Whether the field holds a secret, and so may come from a file and is never shown."""
    return (
        field.annotation is SecretStr
        or SecretStr in get_args(field.annotation)
        or MAY_HOLD_CREDENTIALS in field.metadata
    )


def wrong_settings(error: ValidationError) -> list[str]:
    """What is wrong with the settings, one sentence each, by the names of the environment and without the values."""
    return [
        ": ".join([*(f"{PREFIX}{str(name).upper()}" for name in e["loc"][:1]), e["msg"]])
        for e in error.errors(include_input=False)
    ]
