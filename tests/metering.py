"""What a Messages server counts: which tokens of a request come from its prompt cache, by the API's rules.

A prompt is the blocks of tools, system and messages in this order. Each block with `cache_control` (at most four, those
of an hour before those of five minutes) stores the prompt up to it, if that is long enough; a request reads the longest
stored prompt that ends at one of its marks or up to LOOKBACK blocks before it. What is read lives on.
"""

import hashlib
import json
from typing import Any

from orchestrator.agents.briefing import CHARACTERS

MINIMUM = 1024
"""Tokens of the shortest prompt that is stored; 4,096 for some models."""
LOOKBACK = 20
SECONDS = {"5m": 300.0, "1h": 3600.0}
PRICES = {"input_tokens": 1.0, "cache_read_input_tokens": 0.1, "ephemeral_5m_input_tokens": 1.25}
PRICES["ephemeral_1h_input_tokens"] = 2.0
"""Of a token, in tokens of plain input."""


class PromptCache:
    def __init__(self, minimum: int = MINIMUM) -> None:
        self.minimum = minimum
        self.stored: dict[str, float] = {}
        """When each stored prompt expires, by its digest."""

    def count(self, request: dict[str, Any], now: float) -> dict[str, Any]:
        """Return the usage of a request that comes at `now`, in seconds, and store what it marks."""
        messages = [(message["role"], part) for message in request["messages"] for part in message["content"]]
        blocks = [("tool", tool) for tool in request["tools"]] + [("system", part) for part in request["system"]]
        digest, total = hashlib.sha256(request["model"].encode()), 0.0
        prompts, marks = list[tuple[str, float]](), dict[int, str]()
        for role, block in blocks + messages:
            text = json.dumps([role, {k: v for k, v in block.items() if k != "cache_control"}], ensure_ascii=False)
            digest.update(text.encode())
            total += len(block.get("text", text)) / CHARACTERS
            if mark := block.get("cache_control"):
                marks[len(prompts)] = mark.get("ttl", "5m")
            prompts.append((digest.hexdigest(), total))
        assert len(marks) <= 4, "the API takes four marks"
        assert list(marks.values()) == sorted(marks.values()), "an hour's mark after one of five minutes"
        near = {at for mark in marks for at in range(max(0, mark - LOOKBACK), mark + 1)}
        hit = max((at for at in near if self.stored.get(prompts[at][0], 0.0) > now), default=-1)
        read = done = prompts[hit][1] if hit >= 0 else 0.0
        written = dict.fromkeys(SECONDS, 0.0)
        for at, ttl in marks.items():
            if prompts[at][1] >= self.minimum:
                self.stored[prompts[at][0]] = now + SECONDS[ttl]
                written[ttl] += max(prompts[at][1] - done, 0.0)
                done = max(done, prompts[at][1])
        return {
            "input_tokens": round(total - done),
            "cache_read_input_tokens": round(read),
            "cache_creation_input_tokens": round(sum(written.values())),
            "cache_creation": {f"ephemeral_{ttl}_input_tokens": round(tokens) for ttl, tokens in written.items()},
        }


def count_input(usage: dict[str, Any]) -> int:
    """Return all tokens of input, wherever they came from."""
    return sum(usage[name] for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"))


def weigh(usage: dict[str, Any]) -> float:
    """Return what the input costs, in tokens of plain input."""
    return sum(price * {**usage, **usage["cache_creation"]}[name] for name, price in PRICES.items())
