"""What tokens cost, in whole micro-units of whatever currency the prices are in.

A price is for a million tokens, as everyone states it, so that one token of a model at 0.5 costs half a micro-unit.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.common.settings import Price
from services.common.wire import Usage

MILLION = 1_000_000
EVERY_MODEL = "*"


class Prices:
    """Prices by model. An adapter, `model:adapter`, costs what its model does, unless it has a price of its own; `*` is
    the price of models that have none; without it they cost nothing."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        # Micro-units for a million tokens, in whole numbers, so that sums are exact.
        self._prices = {
            model: (
                int(price.input * MILLION),
                int((price.input if price.cached_input is None else price.cached_input) * MILLION),
                int(price.output * MILLION),
            )
            for model, price in prices.items()
        }

    def cost(self, model: str, usage: Usage) -> int:
        """What the usage costs, rounded to the nearest micro-unit."""
        price = self._price(model)
        if price is None:
            return 0
        cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
        fresh = usage.prompt_tokens - cached
        return (fresh * price[0] + cached * price[1] + usage.completion_tokens * price[2] + MILLION // 2) // MILLION

    def most(self, model: str, prompt: int, completion: int) -> int:
        """What so many tokens cost at most: with nothing of the prompt cached."""
        return self.cost(model, Usage(prompt, completion)) if self._prices else 0

    def of(self, model: str) -> tuple[int, int, int]:
        """Micro-units for a million tokens of a prompt, of its cached ones and of an answer."""
        return self._price(model) or (0, 0, 0)

    def _price(self, model: str) -> tuple[int, int, int] | None:
        prices = self._prices
        if not prices:
            return None
        return prices.get(model) or prices.get(model.partition(":")[0]) or prices.get(EVERY_MODEL)
