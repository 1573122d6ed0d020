"""Who may come in: keys, log-in tokens, log-in attempts and an outside issuer's tokens."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from services.common.settings.common import CommonSettings
from services.common.settings.environment import CommaSeparated


class IdentitySettings(CommonSettings):
    """Keys, tokens, log-in and OpenID Connect."""

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
    oidc_audience: CommaSeparated = Field(
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

    def former_secrets(self) -> list[str]:
        """`jwt_former_secrets`, one by one."""
        return _one_by_one(self.jwt_former_secrets)

    @field_validator("jwt_former_secrets")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if any(len(one) < 32 for one in _one_by_one(value)):
            raise ValueError("each must have 32 bytes or more")
        return value

    @field_validator("oidc_issuer", "oidc_jwks_uri")
    @classmethod
    def _encrypted(cls, value: str | None) -> str | None:
        url = urlsplit(value or "")
        if value is not None and url.scheme != "https" and url.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("must be an https URL: whoever can change the keys on the way can sign tokens")
        return value

    @model_validator(mode="after")
    def _audience_is_named(self) -> Self:
        if self.oidc_issuer is not None and not self.oidc_audience:
            raise ValueError("oidc_audience is needed beside oidc_issuer: a token for another service is none for us")
        return self


def _one_by_one(secrets: SecretStr | None) -> list[str]:
    return [] if secrets is None else secrets.get_secret_value().replace(",", " ").split()
