"""Derive seeds from the session's: run r of every experiment uses the same one (common random numbers)."""

import hashlib

from orchestrator.core.state import State


def draw_seed(state: State, run: int) -> int:
    """Return the seed of the n-th scored run of any experiment, counted from 1."""
    return draw(state, "run", run)


def draw_fresh_seed(state: State, pair: int) -> int:
    """Return the fresh seed of the certificate's n-th pair, which no decision has used."""
    return draw(state, "certificate", pair)


def draw(state: State, *what: object) -> int:
    """Return 31 pseudorandom bits for a purpose, the same in every replay."""
    digest = hashlib.sha256("/".join(map(str, (state.session.seed, *what))).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
