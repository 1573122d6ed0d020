"""What a request may hold: sizes, HTML, and what a moderation service says of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from services.common.settings.common import CommonSettings


class ScreeningSettings(CommonSettings):
    """Sizes of requests, HTML in them, and moderation."""

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
