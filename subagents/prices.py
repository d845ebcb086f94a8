"""What a request costs, by genai-prices' own offline table; None where it does not know the model."""

from collections.abc import Mapping
from typing import Any

from genai_prices import Usage, calc_price, extract_usage

PROVIDER = "anthropic"
CHARACTERS = 2.5
"""A token of code and English is longer; so an estimate from characters is on the safe side."""


def compute_usd(message: Mapping[str, Any]) -> float | None:
    """Dollars of a message with its usage. Prices step with the length of a request, so sums would be wrong."""
    try:
        return float(extract_usage(dict(message), provider_id=PROVIDER).calc_price().total_price)
    except (LookupError, ValueError):
        return None


def is_known(model: str) -> bool:
    """Whether the table has the model's price."""
    return estimate_most(model, 0, 0) is not None


def estimate_most(model: str, characters: int, max_tokens: int) -> float | None:
    """Dollars that a request may come to: nothing of it cached, and an answer of full length."""
    sent = int(characters / CHARACTERS)
    try:
        # An hour's cache is written at twice the price.
        usage = Usage(input_tokens=2 * sent, output_tokens=max_tokens)
        return float(calc_price(usage, model, provider_id=PROVIDER).total_price)
    except (LookupError, ValueError):
        return None
