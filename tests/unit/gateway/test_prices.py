"""Prices: whole micro-units, by model and kind of token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.common.settings import GatewaySettings, Price
from services.common.wire import Usage
from services.gateway.prices import Prices

SECRETS = {"jwt_secret": "j" * 40, "key_secret": "k" * 40}


def prices(**by_model: dict[str, float]) -> Prices:
    return Prices(
        {model: Price(**{kind: str(price) for kind, price in given.items()}) for model, given in by_model.items()}
    )


def test_a_price_is_for_a_million_tokens_and_a_cost_in_millionths() -> None:
    assert prices(m={"input": 0.5, "output": 1.5}).cost("m", Usage(1000, 100)) == 500 + 150


def test_cached_prompt_tokens_have_a_price_of_their_own() -> None:
    by_model = prices(m={"input": 1, "cached_input": 0.1}, n={"input": 1})
    assert by_model.cost("m", Usage(1000, 0, cached_tokens=600)) == 400 + 60
    assert by_model.cost("n", Usage(1000, 0, cached_tokens=600)) == 1000


def test_a_model_without_a_price_costs_nothing_unless_there_is_one_for_all() -> None:
    assert prices(m={"input": 1}).cost("other", Usage(1000, 0)) == 0
    with_default = Prices({"m": Price(input=1), "*": Price(input=2)})
    assert (with_default.cost("m", Usage(10, 0)), with_default.cost("other", Usage(10, 0))) == (10, 20)


def test_an_adapter_costs_what_its_model_does_unless_it_has_a_price() -> None:
    by_model = Prices({"m": Price(input=1), "m:special": Price(input=3), "*": Price(input=9)})
    assert by_model.cost("m:plain", Usage(10, 0)) == 10
    assert by_model.cost("m:special", Usage(10, 0)) == 30


def test_a_cost_is_rounded_to_the_nearest_micro_unit() -> None:
    by_model = prices(m={"input": 0.4})
    assert [by_model.cost("m", Usage(tokens, 0)) for tokens in (1, 2, 3, 4)] == [0, 1, 1, 2]


PRICES = st.integers(0, 10**6 - 1)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1), PRICES, PRICES)
def test_no_call_costs_more_than_was_reserved_for_it(
    prompt: int, completion: int, part: float, price: int, cached_price: int
) -> None:
    """As long as its counts stay within the estimate, and what is cached is not dearer than what is not."""
    by_model = Prices({"m": Price(input=price, cached_input=min(price, cached_price), output=price)})
    used = Usage(int(prompt * part), int(completion * part), cached_tokens=prompt // 2)
    assert by_model.cost("m", used) <= by_model.most("m", prompt, completion)


def test_prices_are_read_from_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_PRICES", '{"m": {"input": 0.15, "output": 0.6}}')
    assert Prices(GatewaySettings(**SECRETS).prices).cost("m", Usage(100, 100)) == 75


@pytest.mark.parametrize("wrong", ['{"m": {"input": -1}}', '{"m": {"inptu": 1}}', '{"m": 1}'])
def test_a_price_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("FOREBAY_PRICES", wrong)
    with pytest.raises(ValidationError, match="prices"):
        GatewaySettings(**SECRETS)
