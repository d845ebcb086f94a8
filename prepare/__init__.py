"""What every experiment shares and none may change: tokenizer, batches, budget and score, under karpathy's names.

A training script writes `from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, make_dataloader, evaluate_bpb`.
Names are resolved on first use, so that `prepare.profiles` and `prepare.manifest` load without torch.
"""

import importlib
import os
import sys
from contextlib import suppress
from operator import attrgetter
from typing import Any

_FROM_MANIFEST = {
    "MAX_SEQ_LEN": attrgetter("seq_len"),
    "TIME_BUDGET": attrgetter("budget.seconds"),
    "EVAL_TOKENS": attrgetter("eval_tokens"),
    "VOCAB_SIZE": attrgetter("vocab_size"),
}
_FROM_MODULE = {
    "BOS_TOKEN": "tokenizer",
    "Budget": "budget",
    "THREADS": "machine",
    "Tokenizer": "tokenizer",
    "evaluate_bpb": "evaluation",
    "get_token_bytes": "evaluation",
    "make_dataloader": "loader",
}


def __getattr__(name: str) -> Any:
    """Return a public name; print one line and exit with code 2 if no data is prepared, or the seed is not a number."""
    if name == "SEED":
        given = os.environ.get("NIGHTSHIFT_SEED") or "42"
        with suppress(ValueError):
            return int(given)
        print(f"prepare: NIGHTSHIFT_SEED={given} is not a number", file=sys.stderr)
        raise SystemExit(2)
    if name in _FROM_MODULE:
        return getattr(importlib.import_module(f"prepare.{_FROM_MODULE[name]}"), name)
    if name in _FROM_MANIFEST:
        from prepare.manifest import DataError, load

        try:
            return _FROM_MANIFEST[name](load())
        except DataError as error:  # a training script should end without a traceback
            print(f"prepare: {error}", file=sys.stderr)
            raise SystemExit(2) from None
    raise AttributeError(f"module 'prepare' has no attribute {name!r}")
