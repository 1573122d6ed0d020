"""Messages and prompts to token ids."""

from __future__ import annotations

from inspect import signature
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
        UnsupportedParameter: the conversation has tool calls in it, or its `chat_template_kwargs` name what is not the
            template's own.
    """
    variables = request.chat_template_kwargs or {}
    if variables and (
        wrong := variables.keys() & {"messages", *signature(type(tokenizer).apply_chat_template).parameters}
    ):
        raise UnsupportedParameter(f"'{min(wrong)}' is no variable of a chat template.", param="chat_template_kwargs")
    messages = [_plain(message) for message in request.messages]
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    try:
        ids = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False, **variables
        )
    except (TemplateError, TypeError, UnicodeError) as error:
        raise InvalidRequest(
            f"The model's chat template does not take these messages: {error}", param="messages"
        ) from error
    return list(ids)


def completion_prompts(request: CompletionRequest, tokenizer: Any, vocabulary: int) -> list[list[int]]:
    """The ids of a text completion's prompts.

    Args:
        vocabulary: ids below this number are tokens of the model.

    Raises:
        InvalidRequest: there are no tokens in one, or ids that the model does not know.
    """
    return [_prompt_ids(prompt, tokenizer, vocabulary) for prompt in request.prompts]


def prompt_text(prompt: str | list[int], tokenizer: Any) -> str:
    """A text completion's prompt as text."""
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.decode(prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _prompt_ids(prompt: str | list[int], tokenizer: Any, vocabulary: int) -> list[int]:
    if isinstance(prompt, str):
        try:
            ids = list(tokenizer(prompt).input_ids)
        except (TypeError, UnicodeError) as error:
            raise InvalidRequest(f"The prompt is not text that can be tokenized: {error}", param="prompt") from error
        if not ids:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            ids = [] if start is None else [start]
    else:
        ids = prompt
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
