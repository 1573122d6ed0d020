"""`/admin`: tenants, users, keys, models, usage and the audit log, for credentials with the scope `admin`; a file each.

`desk` is what these have in common, `writes` how they write.

Admins of the tenant `platform` administer every tenant. Those of another see and change that tenant alone: an id
from outside answers as if it did not exist. Limits, allow-lists of tenants and tenants themselves are the platform's.
"""

from __future__ import annotations

from flask import Blueprint, g, request

from services.gateway.accounts import Accounts
from services.gateway.identify import Identifier, require
from services.gateway.ledger import Books
from services.gateway.parts import Gateway
from services.gateway.routes.admin import audit, keys, models, tenants, usage, users
from services.gateway.routes.admin.desk import Desk

NOUNS = (tenants, users, keys, usage, audit)


def blueprint(
    accounts: Accounts, identifier: Identifier, books: Books | None = None, gateway: Gateway | None = None
) -> Blueprint:
    """The admin routes over these accounts, over the ledger in the same database, and over what `gateway` sees."""
    routes = Blueprint("admin", __name__, url_prefix="/admin")
    desk = Desk(accounts, identifier, books or Books(accounts.engine))

    @routes.before_request
    def _only_admins() -> None:
        g.principal = identifier.identify(request.headers.get("Authorization"))
        require(g.principal, "admin")

    for noun in NOUNS:
        noun.register(routes, desk)
    if gateway is not None:
        models.register(routes, gateway)
    return routes
