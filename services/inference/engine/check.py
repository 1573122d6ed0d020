"""A proof, at load, that a model computes in a packed batch what it computes alone.

Any causal language model that transformers loads and whose attention it lets us replace will do. Rather than keeping a
list of those, two short texts go through the model as transformers has it, and packed in one row through the runner,
and the model is refused when they differ.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.inference.engine.attention import LayerShape
from services.inference.engine.errors import UnsupportedModel
from services.inference.engine.run import Runner
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence

SAMPLE = """Dear colleague, thank you for your message of 14 March 2024. You asked three things: how the river got its \
name, why 7 times 8 is 56, and whether the old bridge can carry a truck of 12.5 tons. The first is easy. People who \
settled on its banks called it "the slow one", since in summer it hardly moves; you will find the story in chapter 2. \
For the second, count: 8, 16, 24, 32, 40, 48, 56. The third I cannot answer. An engineer should look at it first!

def area(width: float, height: float) -> float:
    return width * height  # in square metres

- Bring: a lamp, two ropes, good shoes
- Don't bring: your dog (she's afraid of water)

Die Antwort kommt morgen. À bientôt, et merci encore."""
"""What a model reads while it is loaded: prose, numbers, code, a list, other languages."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Relative error of logits up to which two ways of computing them count as the same."""
TOLERANCE_QUANTIZED = 0.1
"""The same where bitsandbytes multiplies, whose kernels depend on the number of rows."""

BLOCK = 16
"""Tokens of a block while checking: one of the texts is longer, one shorter."""

Expected = list[tuple[list[int], Tensor]]
"""Texts, and the logits [vocabulary] after each."""


def sample_ids(tokenizer: Any) -> list[int]:
    """The sample as the model meets texts: as a message of a chat, where it knows chats. What a template puts first is
    what many models are loudest at."""
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": SAMPLE}]
        return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))
    return list(tokenizer(SAMPLE).input_ids)


@torch.inference_mode()
def expectation(model: PreTrainedModel, tokenizer: Any) -> Expected:
    """What the model as transformers has it computes."""
    ids = sample_ids(tokenizer)
    texts = [ids[: BLOCK + 5], ids[-BLOCK // 2 :]]
    inputs = [torch.tensor([text], device=model.device) for text in texts]
    return [(text, model(one, use_cache=False).logits[0, -1].float()) for text, one in zip(texts, inputs, strict=True)]


def check(model: PreTrainedModel, shapes: Listing[LayerShape], expected: Expected, *, quantized: bool) -> None:
    """Computes the texts packed: all but their ends in one step, the ends, token by token, in the next.

    Raises:
        UnsupportedModel: the result is another.
    """
    runner = Runner(model, shapes, blocks=4, block_size=BLOCK)
    blocks = iter(range(4))
    sequences = [
        Sequence(list(text), len(text), 1, blocks=[next(blocks) for _ in range(0, len(text), BLOCK)])
        for text, _ in expected
    ]
    runner.forward([Work(sequence, sequence.pending - 1) for sequence in sequences])
    for sequence in sequences:
        sequence.computed = len(sequence.ids) - 1
    logits = runner.forward([Work(sequence, 1) for sequence in sequences])
    tolerance = TOLERANCE_QUANTIZED if quantized else TOLERANCE.get(model.dtype, 0.1)
    for got, (_, right) in zip(logits.float(), expected, strict=True):
        error = ((got - right).norm() / right.norm()).item()
        if not error < tolerance:
            raise UnsupportedModel(
                f"Models of type '{model.config.model_type}' compute something else in a packed batch "
                f"(relative error {error:.2g}), so they cannot be served."
            )
