"""What every process reads: where it listens, how long it takes, what it logs."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from services.common.settings.environment import PREFIX, SecretFiles

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


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
