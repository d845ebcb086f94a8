"""`python -m benchmarks [NAME …] [OPTION …]`: measure what docs/benchmarks.md claims, and print it as tables.

With --help, tells of each benchmark and its options, and runs none.
"""

import ast
import importlib
import pkgutil
import sys
from itertools import takewhile
from pathlib import Path

import benchmarks

HELP = {"-h", "--help"}


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name[0] != "_")
    words = takewhile(lambda word: not word.startswith("-"), sys.argv[1:])  # an option has words of its own
    wanted = names if HELP & set(sys.argv) else [name for name in names if name != "gpu_check"]  # `make gpu-check`
    chosen = [*words] or wanted
    if unknown := set(chosen) - set(names):
        sys.exit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names)}")
    for name in chosen:
        print(f"\n## {name}\n")
        if HELP & set(sys.argv):
            print(ast.get_docstring(ast.parse(Path(benchmarks.__path__[0], f"{name}.py").read_text("utf-8"))))
            continue
        importlib.import_module(f"benchmarks.{name}").main()


main()
