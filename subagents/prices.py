"""Price requests by the offline table of genai-prices; None if it does not know the model."""

from collections.abc import Mapping
from typing import Any

from genai_prices import Usage, calc_price, extract_usage

PROVIDER = "anthropic"
CHARACTERS = 2.5  # characters of a token: fewer than in code and English, so that the estimate is an upper bound


def compute_usd(message: Mapping[str, Any]) -> float | None:
    """Return the price of one message in dollars; it depends on the request's length, so usages must not be summed."""
    try:
        return float(extract_usage(dict(message), provider_id=PROVIDER).calc_price().total_price)
    except (LookupError, ValueError):
        return None


def estimate_most(model: str, characters: int, max_tokens: int) -> float | None:
    """Return the most dollars that a request may cost: nothing cached, and an answer of full length."""
    sent = int(characters / CHARACTERS)
    try:
        # Writing a cache that lives an hour costs twice the price.
        usage = Usage(input_tokens=2 * sent, output_tokens=max_tokens)
        return float(calc_price(usage, model, provider_id=PROVIDER).total_price)
    except (LookupError, ValueError):
        return None
