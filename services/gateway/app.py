"""The gateway's Flask application: makes the parts, once a worker process, and registers the routes."""

from __future__ import annotations

from flask import Flask, Response, jsonify

from services.cache.connection import Connection
from services.cache.quotas import Quotas
from services.cache.responses import Responses
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings
from services.common.telemetry import configure_logging
from services.gateway import pulse
from services.gateway.accounts import open_accounts
from services.gateway.drain import draining
from services.gateway.identify import Identifier
from services.gateway.moderation import Moderator
from services.gateway.parts import Gateway
from services.gateway.routes import admin, guide, login, openai
from services.gateway.upstreams.discover import Fleet
from services.gateway.upstreams.resolve import Source
from services.web.edge import create_app as create_edge


def create_app(settings: GatewaySettings | None = None) -> Flask:
    """The application, with its settings from the environment unless they are given."""
    settings = settings or GatewaySettings()
    configure_logging("gateway", settings)
    accounts = open_accounts(
        settings.database_url, pool_size=settings.database_pool_size, key_secret=settings.key_secret.get_secret_value()
    )
    connection = Connection(settings.redis_url)
    metrics = GatewayMetrics()
    gateway = Gateway(
        settings=settings,
        metrics=metrics,
        identifier=Identifier(accounts, settings),
        connection=connection,
        quotas=Quotas(connection),
        responses=Responses(connection, ttl=settings.cache_ttl, max_bytes=settings.cache_max_bytes),
        fleet=Fleet(Source(settings.upstreams), interval=settings.upstream_poll_interval, metrics=metrics),
        moderator=Moderator(settings, metrics) if settings.moderation_url else None,
    )
    gateway.fleet.start()
    pulse.watch(connection, metrics.cache_down)

    app = create_edge("services.gateway", max_body_bytes=settings.max_body_bytes)
    app.extensions["forebay"] = gateway
    login.register(app, accounts, gateway.identifier, settings)
    app.register_blueprint(openai.blueprint(gateway))
    app.register_blueprint(guide.blueprint(gateway))
    app.register_blueprint(admin.blueprint(accounts, gateway.identifier))

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        if draining():
            return jsonify(status="draining"), 503
        # Not a matter of pods: a gateway without one still answers, with a sentence and a Retry-After.
        return jsonify(status="ready", models=sorted(gateway.fleet.models())), 200

    return app
