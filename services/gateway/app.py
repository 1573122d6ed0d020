"""The gateway's Flask application: makes the parts, once a worker process, and registers the routes."""

from __future__ import annotations

from flask import Flask, Response, jsonify

from services.cache.connection import Connection
from services.cache.ledger import Stream
from services.cache.processes import Process
from services.cache.quotas import Quotas
from services.cache.responses import Responses
from services.cache.tapes import Tapes
from services.cache.throttle import Throttle
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings
from services.common.telemetry import configure_logging
from services.gateway import pulse
from services.gateway.accounts import Accounts
from services.gateway.accounts.database import await_accounts
from services.gateway.budgets import Budgets
from services.gateway.drain import draining
from services.gateway.estimate import Estimates
from services.gateway.hold import Hold
from services.gateway.identify import Identifier
from services.gateway.ledger import Books, Ledger, open_books
from services.gateway.ledger.reaper import Parts, Reaper
from services.gateway.moderation import Moderator
from services.gateway.parts import Gateway
from services.gateway.prices import Prices
from services.gateway.recall.flights import Flights
from services.gateway.recall.known import Front, Known
from services.gateway.recall.semantic import Semantic
from services.gateway.routes import admin, description, guide, login, openai
from services.gateway.routes.admin.usage import register_own
from services.gateway.spans import Spans
from services.gateway.upstreams.breaker import Rules
from services.gateway.upstreams.discover import Fleet
from services.gateway.upstreams.resolve import Source
from services.web.edge import create_app as create_edge

LEDGER_GRACE = 1.0
"""Seconds in which a worker that ends writes what it has for the ledger."""


def create_app(settings: GatewaySettings | None = None) -> Flask:
    """The application, with its settings from the environment unless they are given."""
    settings = settings or GatewaySettings()
    configure_logging("gateway", settings)
    accounts = await_accounts(
        settings.database_url,
        pool_size=settings.database_pool_size,
        key_secret=settings.key_secret.get_secret_value(),
        wait=settings.database_timeout,
    )
    books = open_books(settings.database_url, wait=settings.database_timeout)
    gateway, reaper = _make(settings, accounts, books)
    for part in (gateway.process, gateway.tapes, gateway.ledger, gateway.budgets, gateway.fleet, reaper):
        part.start()
    pulse.watch(gateway.connection, gateway.metrics.cache_down)
    pulse.watch_accounts(accounts, gateway.metrics.accounts_down)

    app = create_edge("services.gateway", max_body_bytes=settings.max_body_bytes)
    app.extensions["forebay"] = gateway
    app.extensions["forebay.reaper"] = reaper
    _register_routes(app, gateway, accounts, books)
    if gateway.spans is None:  # which are made of whole calls
        app.wsgi_app = Front(gateway, app.wsgi_app)  # type: ignore[method-assign]
    return app


def _make(settings: GatewaySettings, accounts: Accounts, books: Books) -> tuple[Gateway, Reaper]:
    """The parts of a request, and who settles the calls of gateways that died."""
    metrics = GatewayMetrics()
    connection = Connection(settings.redis_url)
    process = Process(connection)
    stream = Stream(connection, process.id)
    quotas = Quotas(connection, process=process.id)
    tapes = Tapes(connection, process.id)
    fleet = Fleet(
        Source(settings.upstreams),
        interval=settings.upstream_poll_interval,
        metrics=metrics,
        expected=settings.expected_models,
        rules=Rules(in_a_row=settings.breaker_failures, pause=settings.breaker_pause),
        retry_ratio=settings.retry_budget,
        load_bound=settings.load_bound,
    )
    gateway = Gateway(
        settings=settings,
        metrics=metrics,
        identifier=Identifier(accounts, settings),
        connection=connection,
        process=process,
        quotas=quotas,
        prices=Prices(settings.prices),
        estimates=Estimates(),
        budgets=Budgets(books, quotas),
        responses=Responses(
            connection,
            ttl=settings.cache_ttl,
            max_bytes=settings.cache_max_bytes,
            shared_salt=accounts.keyed_hash("shared cache", ""),
        ),
        known=Known(),
        tapes=tapes,
        flights=Flights(tapes),
        semantic=Semantic(connection, settings, metrics) if settings.semantic_cache_url else None,
        fleet=fleet,
        spans=Spans(settings.tracing_url) if settings.tracing_url else None,
        hold=Hold(fleet, metrics, timeout=settings.hold_timeout, most=settings.hold_max),
        ledger=Ledger(books, stream, metrics, retention_days=settings.ledger_retention_days),
        moderator=Moderator(settings, metrics) if settings.moderation_url else None,
    )
    return gateway, Reaper(Parts(process, quotas, stream, books, fleet, gateway.prices, metrics))


def _register_routes(app: Flask, gateway: Gateway, accounts: Accounts, books: Books) -> None:
    identifier, throttle = gateway.identifier, Throttle(gateway.connection)
    login.register(app, accounts, identifier, gateway.settings, throttle=throttle, metrics=gateway.metrics)
    app.register_blueprint(openai.blueprint(gateway))
    app.register_blueprint(guide.blueprint(gateway))
    app.register_blueprint(admin.blueprint(accounts, identifier, books, gateway))
    register_own(app, identifier, books)
    app.register_blueprint(description.blueprint())

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        if draining():
            return jsonify(status="draining"), 503
        if (reason := accounts.sessions.closed) is not None:
            return jsonify(status="waiting", reason=reason), 503  # nobody could be let in
        # Not a matter of pods: a gateway without one still answers, with a sentence and a Retry-After.
        return jsonify(status="ready", models=sorted(gateway.fleet.models())), 200


def close(app: Flask) -> None:
    """Ends what a worker does beside requests, once the last of them has gone: the ledger gets what it can take now,
    and the others learn at once that this process is no more."""
    gateway: Gateway = app.extensions["forebay"]
    app.extensions["forebay.reaper"].stop()
    gateway.budgets.stop()
    gateway.tapes.stop()
    gateway.ledger.stop(LEDGER_GRACE)
    gateway.process.stop()
    if gateway.spans is not None:
        gateway.spans.stop()
