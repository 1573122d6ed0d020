"""Every setting of Forebay, declared once. `docs/settings.md` is generated from here (`make docs`) and a test holds it.

Settings come from environment variables `FOREBAY_<NAME>`. A secret may also be given as a file: `FOREBAY_<NAME>_FILE`
names it, which is how Kubernetes and Compose hand secrets over.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "FOREBAY_"
MAY_HOLD_CREDENTIALS = "may hold credentials"
"""Marks a URL in which a user's name and password may stand, which makes it a secret."""
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


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


class Price(BaseModel):
    """What a model's tokens cost, for a million of each, in one currency for all models."""

    model_config = ConfigDict(extra="forbid")

    input: Decimal = Field(Decimal(0), ge=0, max_digits=12, decimal_places=6)
    cached_input: Decimal | None = Field(None, ge=0, max_digits=12, decimal_places=6)
    """Of prompt tokens that a pod's prefix cache spared; the same as others where it is not given."""
    output: Decimal = Field(Decimal(0), ge=0, max_digits=12, decimal_places=6)


def wrong_settings(error: ValidationError) -> list[str]:
    """What is wrong with the settings, one sentence each, by the names of the environment and without the values."""
    return [
        ": ".join([*(f"{PREFIX}{str(name).upper()}" for name in e["loc"][:1]), e["msg"]])
        for e in error.errors(include_input=False)
    ]


class CommonSettings(BaseSettings):
    """What gateway, inference service and `forebay` share."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", env_ignore_empty=True)

    home: Path = Field(Path(".forebay"), description="Folder for local state: models, database, keys, logs.")
    host: str = Field("127.0.0.1", description="Address that the HTTP and metrics ports listen on; images set 0.0.0.0.")
    metrics_port: int = Field(9090, ge=1, le=65535, description="Prometheus metrics, on a port of their own.")
    request_timeout: float = Field(
        60.0, gt=0, description="Seconds a request may take, first byte to last; later it ends with 504."
    )
    shutdown_grace: float = Field(
        8.0, gt=0, description="Seconds that running requests get to finish after SIGTERM before they are cut."
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_file: Path | None = Field(None, description="A rotated file that gets the JSON log too, beside stdout.")
    log_file_max_bytes: int = Field(10_485_760, gt=0, description="Size at which the log file is rotated.")
    log_file_backups: int = Field(5, ge=0, description="Rotated log files that are kept.")

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in LOG_LEVELS:
            raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
        return value.upper()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, SecretFiles(settings_cls), env_settings


class GatewaySettings(CommonSettings):
    """The gateway's own settings."""

    gateway_port: int = Field(8080, ge=1, le=65535, description="HTTP port of the gateway.")
    gateway_workers: int = Field(1, ge=1, description="Worker processes of one gateway.")
    gateway_connections: int = Field(1000, ge=1, description="Connections that one worker holds at the same time.")
    upstreams: Annotated[list[str], NoDecode] = Field(
        ["http://127.0.0.1:8000"],
        description="Base URLs of the inference pods, comma-separated. `dns+http://HOST:PORT` is a pod at each address "
        "of the name, which is looked up again and again: a headless Service of Kubernetes. `k8s+http://NAMESPACE` is "
        "each pod of the EndpointSlices there that have the label `forebay.dev/model`, which are watched; no namespace "
        "is the gateway's own, `:PORT` is for pods whose port is not named `http`, `?labelSelector=` selects others.",
    )
    upstream_poll_interval: float = Field(1.0, gt=0, description="Seconds between looks at each pod's models and load.")
    load_bound: float = Field(
        1.25,
        ge=1,
        description="How many times the average load a pod may have that a conversation returns to, as the KV cache "
        "has its beginning there; above it another pod takes the request. 1 spreads most evenly.",
    )
    retry_budget: float = Field(
        0.2, ge=0, description="Requests sent to a second pod, as a part of all requests, beside ten a second."
    )
    breaker_failures: int = Field(
        5, ge=1, description="Failures in a row after which a pod gets no requests for a while."
    )
    breaker_pause: float = Field(
        2.0, gt=0, description="Seconds until such a pod is tried again; doubled at each failure, up to a minute."
    )
    redis_url: Annotated[str, MAY_HOLD_CREDENTIALS] = Field(
        "redis://127.0.0.1:6379/0", description="Redis or Valkey: quotas and response cache."
    )
    database_url: Annotated[str, MAY_HOLD_CREDENTIALS] = Field(
        "sqlite:///.forebay/forebay.db", description="SQLAlchemy URL of accounts, keys and revocations."
    )
    database_pool_size: int = Field(20, ge=1, description="Connections that one worker keeps to the database server.")
    ledger_retention_days: int = Field(
        0, ge=0, description="Days that the usage ledger keeps the row of a call; 0 keeps it for ever."
    )
    database_timeout: float = Field(
        5.0, gt=0, description="Seconds to wait for a connection to the database, a lock in it or its answer."
    )
    jwt_secret: SecretStr = Field(description="Signs log-in tokens. Needed; 32 bytes or more.", min_length=32)
    jwt_former_secrets: SecretStr | None = Field(
        None,
        description="Secrets that signed log-in tokens before, which are still accepted: separated by spaces, commas "
        "or line breaks, 32 bytes or more each.",
    )
    key_secret: SecretStr = Field(
        description="Keys the hashes of API keys and the tenants' cache salts. Needed; 32 bytes or more.", min_length=32
    )
    access_token_ttl: int = Field(900, gt=0, description="Seconds an access token of `POST /login` is good for.")
    refresh_token_ttl: int = Field(2_592_000, gt=0, description="Seconds a refresh token is good for.")
    identity_ttl: float = Field(
        5.0, ge=0, description="Seconds a checked key or token is trusted without a database look: revocation's delay."
    )
    identity_grace: float = Field(
        600.0, ge=0, description="Seconds a checked key or token stays good while the database can't be reached."
    )
    login_window: float = Field(300.0, gt=0, description="Seconds that the numbers of log-in attempts are for.")
    login_attempts_per_user: int = Field(
        10, ge=1, description="Log-ins of one user name that may fail in `login_window`; then one more at even times."
    )
    login_attempts_per_address: int = Field(
        50, ge=1, description="The same for one IP address, or one /64 network of IPv6."
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        description="Proxies in front of the gateway that append to `X-Forwarded-For`; the client's address is what "
        "the outermost of them saw. 0 takes the connection's own.",
    )
    oidc_issuer: str | None = Field(
        None, description="URL of an OpenID Connect issuer whose tokens are accepted; https, or http on loopback."
    )
    oidc_audience: Annotated[list[str], NoDecode] = Field(
        [], description="What `aud` of such a token must be or contain; comma-separated, one is enough. Needed."
    )
    oidc_jwks_uri: str | None = Field(
        None, description="URL of the issuer's keys; by default the one that its discovery document names."
    )
    oidc_keys_ttl: float = Field(300.0, gt=0, description="Seconds after which the issuer's keys are fetched anew.")
    oidc_refetch_interval: float = Field(
        10.0, ge=0, description="Seconds between fetches at least, however many tokens name a key that is not known."
    )
    oidc_tenant_claim: str = Field(
        "tenant", description="Claim that names the tenant; `a.b` is the claim `b` within `a`."
    )
    oidc_tenants: dict[str, str] = Field(
        {},
        description='Tenants by the value of that claim, as JSON: `{"acme.com": "acme"}`; `*` is every other value. '
        "Without it the value is the tenant's name, save `platform`.",
    )
    oidc_create_tenants: bool = Field(False, description="Make a tenant that a token names and that does not exist.")
    oidc_scope_claim: str = Field("groups", description="Claim whose values give scopes, a list or words in a text.")
    oidc_scopes: dict[str, list[Literal["inference", "admin"]]] = Field(
        {},
        description='Scopes by the values of that claim, as JSON: `{"llm-users": ["inference"]}`; `*` is everybody. '
        "Without it nobody has any.",
    )
    requests_per_minute: int = Field(600, ge=1, description="Limit of a key that has none of its own.")
    tokens_per_minute: int = Field(200_000, ge=1, description="Limit of a key that has none of its own.")
    concurrent_requests: int | None = Field(
        None,
        ge=1,
        description="Requests that a key may have running at the same time, where it has no limit of its own.",
    )
    tokens_per_day: int | None = Field(None, ge=1, description="Budget of a key that has none of its own.")
    tokens_per_month: int | None = Field(None, ge=1, description="Budget of a key that has none of its own.")
    micros_per_day: int | None = Field(
        None, ge=1, description="Budget of a key that has none of its own, in millionths of the currency of `prices`."
    )
    micros_per_month: int | None = Field(None, ge=1, description="The same for a month.")
    prices: dict[str, Price] = Field(
        {},
        description="What models cost, as JSON: a price for a million tokens of each kind, `*` for models that have "
        'none, as in `{"small": {"input": 0.5, "cached_input": 0.05, "output": 1.5}, "*": {"output": 1}}`. Without one '
        "they cost nothing.",
    )
    default_max_tokens: int = Field(1024, ge=1, description="`max_tokens` of a request that names none.")
    cache_ttl: int = Field(3600, ge=0, description="Seconds a cached answer is kept; 0 turns the response cache off.")
    stream_replay_ttl: int = Field(
        300,
        ge=0,
        description="Seconds that a numbered stream is kept in Redis after its end, for a client that comes back with "
        "`Last-Event-ID`; 0 numbers none. Only streams whose client's `Accept` names text/event-stream are numbered.",
    )
    idempotency_ttl: int = Field(
        86_400,
        ge=0,
        description="Seconds that an `Idempotency-Key` and its answer are kept in Redis; 0 ignores the header.",
    )
    semantic_cache_url: str | None = Field(
        None,
        description="Base URL of a service that speaks OpenAI's `/v1/embeddings`: turns the semantic cache on, which "
        "answers a single-turn deterministic chat with the answer to a question of nearly the same meaning. Off by "
        "default: what is near need not have the same answer.",
    )
    semantic_cache_model: str = Field("", description="The embedding model's name; without one the service chooses.")
    semantic_cache_key: SecretStr | None = Field(
        None, description="The embedding service's API key, where it needs one."
    )
    semantic_cache_threshold: float = Field(
        0.97, gt=0, le=1, description="How near a question must be: the cosine of the two vectors, 1 is the same."
    )
    semantic_cache_entries: int = Field(
        200, ge=1, le=5000, description="Questions that are remembered for each tenant; each look-up reads them all."
    )
    semantic_cache_timeout: float = Field(
        0.5, gt=0, description="Seconds that the embedding service may take; then the request goes to a pod."
    )
    cache_max_bytes: int = Field(1_048_576, ge=1, description="Answers larger than this are not cached.")
    max_body_bytes: int = Field(2_097_152, ge=1, description="Request bodies larger than this are refused with 413.")
    max_json_depth: int = Field(
        64, ge=4, le=200, description="Levels of lists and objects in a request body; what is nested deeper is refused."
    )
    max_messages: int = Field(2048, ge=1, le=2048, description="Messages that one chat request may have.")
    max_text_length: int = Field(1_048_576, ge=1, description="Characters that any one text of a request may have.")
    strip_html: bool = Field(
        False,
        description="Take HTML out of messages and prompts before a model sees them. Damages code in prompts, in which "
        "`<` is no tag.",
    )
    moderation_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Base URL of a service that speaks OpenAI's `/v1/moderations`, asked before a prompt goes to a "
        "pod; what it flags is refused. Without one nothing is asked.",
    )
    moderation_model: str = Field("", description="The moderation model's name; without one the service chooses.")
    moderation_key: SecretStr | None = Field(None, description="The moderation service's API key, where it needs one.")
    moderation_timeout: float = Field(2.0, gt=0, description="Seconds that the moderation service may take.")
    moderation_failure: Literal["closed", "open"] = Field(
        "closed",
        description="What becomes of a prompt when the moderation service does not answer: `closed` refuses it with "
        "503, `open` lets it pass.",
    )
    route_timeouts: dict[str, float] = Field(
        {}, description='Time-outs of single routes, as JSON: `{"/generate": 30}`; the others take request_timeout.'
    )
    aliases: dict[str, dict[str, float]] = Field(
        {},
        description="Names that stand for several models, by weight, as JSON: "
        '`{"prod": {"a": 90, "b": 10}}`. A conversation stays with the model that it got.',
    )
    fallbacks: dict[str, list[str]] = Field(
        {},
        description="Models that answer where no pod of a model can, in this order, as JSON: "
        '`{"a": ["b"]}`. The answer names the model that gave it.',
    )
    expected_models: Annotated[list[str], NoDecode] = Field(
        [],
        description="Names of models, comma-separated, that exist although no pod has served them yet: a request for "
        "one waits for its first pod instead of being answered 404.",
    )
    hold_timeout: float = Field(
        30.0,
        ge=0,
        description="Seconds that a request waits for a pod while none is ready for its model; 0: not at all.",
    )
    hold_max: int = Field(200, ge=0, description="Requests that one worker lets wait for a pod at the same time.")
    tracing_url: str = Field(
        "",
        description="Where spans are sent, OTLP over HTTP: `http://collector:4318/v1/traces`. Empty: there are none. "
        "Needs the extra `tracing`.",
    )
    drain_delay: float = Field(
        0.0,
        ge=0,
        description="Seconds after SIGTERM in which a gateway still takes requests, while `/readyz` answers 503 "
        "already: the time that load balancers need to send no more. Then shutdown_grace begins.",
    )

    def former_secrets(self) -> list[str]:
        """`jwt_former_secrets`, one by one."""
        given = self.jwt_former_secrets
        return [] if given is None else given.get_secret_value().replace(",", " ").split()

    @field_validator("jwt_former_secrets")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and any(len(one) < 32 for one in value.get_secret_value().replace(",", " ").split()):
            raise ValueError("each must have 32 bytes or more")
        return value

    @field_validator("oidc_issuer", "oidc_jwks_uri")
    @classmethod
    def _encrypted(cls, value: str | None) -> str | None:
        url = urlsplit(value or "")
        if value is not None and url.scheme != "https" and url.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("must be an https URL: whoever can change the keys on the way can sign tokens")
        return value

    @field_validator("oidc_audience", mode="before")
    @classmethod
    def _split_audience(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _audience_is_named(self) -> Self:
        if self.oidc_issuer is not None and not self.oidc_audience:
            raise ValueError("oidc_audience is needed beside oidc_issuer: a token for another service is none for us")
        return self

    @field_validator("aliases")
    @classmethod
    def _check_aliases(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for alias, weights in value.items():
            if not weights or not all(0 < weight < float("inf") for weight in weights.values()):
                raise ValueError(f"the alias '{alias}' needs models, each with a weight above zero")
            if nested := weights.keys() & value.keys():
                raise ValueError(f"the alias '{alias}' stands for '{min(nested)}', which is an alias itself")
        return value

    @field_validator("upstreams", "expected_models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [url.strip().rstrip("/") for url in value.split(",") if url.strip()] if isinstance(value, str) else value


class InferenceSettings(CommonSettings):
    """The inference service's own settings."""

    inference_port: int = Field(8000, ge=1, le=65535, description="HTTP port of an inference pod.")
    inference_threads: int | None = Field(
        None,
        ge=2,
        description="Requests whose connections one pod holds at the same time; by default max_batch + max_queue + 16, "
        "so that a full queue is answered 429 and the probes still get a thread.",
    )
    model: str = Field(
        "bundled",
        description="What to serve: `bundled` (SmolLM2-135M-Instruct), a hub id (`org/name` or "
        "`org/name@revision`), a local folder or a GGUF file; `name=source` gives it a name, a comma "
        "separates several, of which the first is loaded at start.",
    )
    adapters: str = Field(
        "",
        description="LoRA adapters, as `model:adapter=source`, comma-separated; a source is a folder, as peft saves, "
        "or a hub id. Requests name one as `model:adapter`.",
    )
    pinned: str = Field(
        "", description="Names of models, comma-separated, that stay in memory when others need theirs."
    )
    bundled_model: Path | None = Field(
        None,
        description="A folder that holds the bundled model converted already; images carry one, so that a pod starts "
        "from it at once and writes nothing. By default it is converted into the home folder, once.",
    )
    model_memory: int | None = Field(
        None, gt=0, description="Bytes all loaded models may take together; by default 80% of what is free at start."
    )
    hub_offline: bool = Field(False, description="Never ask the model hub; a hub id must then be in its local cache.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`.")
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="How linears are kept: `none` exactly (float32 on CPU, bfloat16 on GPUs), `int8` in 8 bits, which "
        "on CPU is faster too, `nf4` in 4 bits, by bitsandbytes. The last two cost some accuracy and are refused for a "
        "model that is split over several GPUs.",
    )
    compile: bool = Field(
        False,
        description="Compile the layers by torch.compile, on GPUs to CUDA graphs; readiness waits for it, for minutes. "
        "Not with quantization, adapters, or several GPUs. On CPU it is slower than without.",
    )
    context_length: int | None = Field(None, gt=0, description="Longest prompt plus answer; else the model's own.")
    max_batch: int = Field(32, ge=1, description="Requests in the running batch.")
    max_queue: int = Field(256, ge=0, description="Requests that may wait; one more is answered 429.")
    step_tokens: int = Field(
        512, ge=1, description="Tokens that one engine step computes at most, prefill and decode together."
    )
    step_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds that one engine step may take; after that `/healthz` and `/readyz` answer 503, so that "
        "whoever runs the pod starts it anew.",
    )
    chunk_tokens: int = Field(
        64,
        ge=1,
        description="Tokens of prompts that a step computes at most while other requests generate: fewer stall them "
        "less, more bring new requests to their first token sooner.",
    )
    prefix_cache: bool = Field(True, description="Keep the KV cache of prompts and answers for those that begin alike.")
    kv_blocks: int | None = Field(None, gt=0, description="KV cache blocks; by default sized from free memory.")


class FleetSettings(CommonSettings):
    """What `forebay up` starts."""

    gateways: int = Field(1, ge=1, description="Gateway processes, on consecutive ports.")
    pods: int = Field(1, ge=1, description="Inference pods, on consecutive ports.")


ALL: tuple[type[CommonSettings], ...] = (CommonSettings, GatewaySettings, InferenceSettings, FleetSettings)
