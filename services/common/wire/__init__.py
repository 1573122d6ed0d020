"""The OpenAI wire format: `requests` as validated models, `answers` and stream chunks as plain dictionaries.

Both services validate with the same models (`reading`). Unknown fields are kept, so that the gateway can relay what
another engine understands and ours does not. Reference: OpenAI API, chat completions, completions and models.
"""

from services.common.wire.answers import Answer, FinishReason, Kind, Usage, model_list
from services.common.wire.reading import parse_json, validate
from services.common.wire.requests import (
    MAX_PROMPTS,
    MAX_TOKENS,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    WireModel,
)

__all__ = [
    "MAX_PROMPTS",
    "MAX_TOKENS",
    "Answer",
    "ChatRequest",
    "CompletionRequest",
    "FinishReason",
    "GenerationRequest",
    "Kind",
    "Message",
    "Usage",
    "WireModel",
    "model_list",
    "parse_json",
    "validate",
]
