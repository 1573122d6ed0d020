"""How the tests of the admin API come in."""

from __future__ import annotations

from flask.testing import FlaskClient

from tests.unit.gateway.conftest import PASSWORD

Headers = dict[str, str]


def bearer(credential: str) -> Headers:
    return {"Authorization": f"Bearer {credential}"}


def log_in(client: FlaskClient, username: str, password: str = PASSWORD) -> Headers:
    answer = client.post("/login", json={"username": username, "password": password})
    return bearer(answer.get_json()["access_token"])
