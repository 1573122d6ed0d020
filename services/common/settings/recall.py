"""How long answers are kept, for whom asks the same again."""

from __future__ import annotations

from pydantic import Field, SecretStr

from services.common.settings.common import CommonSettings


class RecallSettings(CommonSettings):
    """The response cache, replayed streams, idempotency keys and the semantic cache."""

    cache_ttl: int = Field(3600, ge=0, description="Seconds a cached answer is kept; 0 turns the response cache off.")
    cache_max_bytes: int = Field(1_048_576, ge=1, description="Answers larger than this are not cached.")
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
