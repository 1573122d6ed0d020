"""The models that a caller sees: those that some ready pod serves and the caller may use, and the aliases of them."""

from __future__ import annotations

from typing import Any

from services.gateway.admit import may_use
from services.gateway.aliases import listed
from services.gateway.identify import Principal
from services.gateway.parts import Gateway


def models_of(gateway: Gateway, principal: Principal) -> dict[str, dict[str, Any]]:
    """Rows of `GET /v1/models` by name. An alias is among them where the caller may use it by its name, or may use all
    the models that it stands for."""
    aliases, models = gateway.settings.aliases, gateway.fleet.models()
    own = {name: row for name, row in models.items() if may_use(principal, name)}
    usable = {
        alias: weights
        for alias, weights in aliases.items()
        if may_use(principal, alias) or all(may_use(principal, model) for model in weights)
    }
    return {**own, **listed(usable, models)}


def default_model(gateway: Gateway, principal: Principal) -> str | None:
    """The model of a request that names none: the first that the caller sees, else one whose pods are gone."""
    known = [name for name in gateway.fleet.known_models if may_use(principal, name)]
    return next(iter([*models_of(gateway, principal), *known]), None)
