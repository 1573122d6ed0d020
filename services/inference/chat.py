"""Messages and prompts to token ids."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from services.common.errors import InvalidRequest, UnsupportedParameter
from services.common.wire import ChatRequest, CompletionRequest, Message

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models whose makers gave no template: base models continue such a text."""


def chat_prompt(request: ChatRequest, tokenizer: Any) -> list[int]:
    """The ids of a conversation, up to where the assistant's answer begins.

    Raises:
        InvalidRequest: the model's template does not take these messages, for instance roles out of order.
        UnsupportedParameter: the conversation has tool calls in it.
    """
    messages = [_plain(message) for message in request.messages]
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    try:
        ids = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except (TemplateError, TypeError, UnicodeError) as error:
        raise InvalidRequest(
            f"The model's chat template does not take these messages: {error}", param="messages"
        ) from error
    return list(ids)


def completion_prompt(request: CompletionRequest, tokenizer: Any, vocabulary: int) -> list[int]:
    """The ids of a text completion's prompt.

    Args:
        vocabulary: ids below this number are tokens of the model.

    Raises:
        InvalidRequest: there are no tokens in it, or ids that the model does not know.
        UnsupportedParameter: it is a list of several prompts.
    """
    prompt = request.prompt
    if isinstance(prompt, list) and isinstance(prompt[0], str):
        if len(prompt) > 1:
            raise UnsupportedParameter("Several prompts in one request are not supported.", param="prompt")
        prompt = prompt[0]
    if isinstance(prompt, str):
        try:
            ids = list(tokenizer(prompt).input_ids)
        except (TypeError, UnicodeError) as error:
            raise InvalidRequest(f"The prompt is not text that can be tokenized: {error}", param="prompt") from error
        if not ids:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            ids = [] if start is None else [start]
    else:
        ids = [token for token in prompt if isinstance(token, int)]
        wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(f"{wrong} is not a token id of this model: it has {vocabulary}.", param="prompt")
    if not ids:
        raise InvalidRequest("The prompt has no tokens.", param="prompt")
    return ids


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates take it."""
    extra = message.model_extra or {}
    if message.role == "tool" or extra.get("tool_calls") or extra.get("function_call"):
        raise UnsupportedParameter("Tool calls are not supported by this model server.", param="messages")
    # `developer` is OpenAI's newer name for `system`, which no open model's template knows.
    role = "system" if message.role == "developer" else message.role
    name = {"name": extra["name"]} if isinstance(extra.get("name"), str) else {}
    return {"role": role, "content": message.text(), **name}
