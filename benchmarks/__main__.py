"""`python -m benchmarks [NAME …] [OPTION …]`: measure what docs/benchmarks.md claims, and print it as tables."""

import importlib
import pkgutil
import sys
from itertools import takewhile

import benchmarks


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name[0] != "_")
    words = takewhile(lambda word: not word.startswith("-"), sys.argv[1:])  # an option has words of its own
    chosen = [*words] or [name for name in names if name != "gpu_check"]  # that is `make gpu-check`
    if unknown := set(chosen) - set(names):
        sys.exit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names)}")
    for name in chosen:
        print(f"\n## {name}\n")
        importlib.import_module(f"benchmarks.{name}").main()


main()
