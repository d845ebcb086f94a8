"""Price requests by the offline table of genai-prices; None if it does not know the model."""

from collections.abc import Mapping
from typing import Any

from genai_prices import Usage, calc_price, extract_usage

PROVIDER = "anthropic"
TYPICAL = {
    "researcher": {"input_tokens": 14_300, "cache_read_tokens": 11_100, "output_tokens": 2_000},
    "mechanic": {"input_tokens": 4_000, "cache_read_tokens": 3_200, "output_tokens": 700},
    "reflector": {"input_tokens": 3_000, "cache_read_tokens": 1_600, "output_tokens": 800},
    "notebook": {"input_tokens": 1_500, "output_tokens": 400},  # of a conversation in ten experiments
}
"""Tokens of an agent per experiment. What it reads is from the third night in docs/benchmarks.md; what
it writes is a guess, four times what was written there, since models that think write more."""
MOST_USD = 1e6  # that a reply can cost; a server that tells more has miscounted
CHARACTERS = 2.5  # characters of a token: fewer than in code and English, so that the estimate is an upper bound


def compute_usd(message: Mapping[str, Any]) -> float | None:
    """Return the price of one message in dollars; it depends on the request's length, so usages must not be summed."""
    try:
        usd = float(extract_usage(dict(message), provider_id=PROVIDER).calc_price().total_price)
    except (LookupError, ValueError):
        return None
    return usd if 0 <= usd <= MOST_USD else None


def estimate_most(model: str, characters: int, max_tokens: int) -> float | None:
    """Return the most dollars that a request may cost: nothing cached, and an answer of full length."""
    sent = 2 * int(characters / CHARACTERS)  # writing a cache that lives an hour costs twice the price
    return _compute_price(model, {"input_tokens": sent, "output_tokens": max_tokens})


def estimate_experiment(models: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the least and the most dollars that an experiment usually costs; None where a price is unknown."""
    prices = [_compute_price(model, TYPICAL[agent]) for agent, model in models.items()]
    costs = [price for price in prices if price is not None]
    return (sum(costs) / 2, sum(costs) * 1.5) if len(costs) == len(prices) else None


def _compute_price(model: str, tokens: Mapping[str, int]) -> float | None:
    try:
        return float(calc_price(Usage(**tokens), model, provider_id=PROVIDER).total_price)
    except (LookupError, ValueError):
        return None
