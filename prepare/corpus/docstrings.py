"""Harvest the built-in corpus: the documentation in Python packages that are installed anyway."""

import ast
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

from prepare.corpus import compute_digest, track
from prepare.machine import count_cores
from prepare.manifest import DataError

PACKAGES = ("torch", "numpy", "sympy", "networkx")
HELD_OUT = ("sqlalchemy", "optuna", "alembic")
"""Packages to measure scores on. No training needs them, so a sandbox can hide them. Their prose is written by hand;
generated documentation, as in anthropic and plotly, repeats itself."""
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests"}.union(
    ("encodings", "idlelib", "lib2to3", "pydoc_data")
)


def harvest(held_out: Sequence[str] = HELD_OUT) -> tuple[list[str], list[str]]:
    """Return the documents to train on and the held-out ones, one per module, ordered by hash. Raises DataError."""
    roots = [Path(sysconfig.get_path("stdlib")), *filter(None, map(find_package, PACKAGES))]
    known = [path for root in roots for path in list_sources(root)]
    unknown = [path for root in filter(None, map(find_package, held_out)) for path in list_sources(root)]
    if not unknown:
        raise DataError(f"nothing to validate on: the corpus docstrings needs one of {', '.join(held_out)} installed")
    with ProcessPoolExecutor(count_cores(), get_context("spawn"), _end_with_parent) as pool:
        found = pool.map(extract_documentation, [*known, *unknown], chunksize=64)
        texts = ["\n\n".join(parts) for parts in track(found, len(known + unknown), "reading docstrings")]
    parts = texts[: len(known)], texts[len(known) :]
    train, rest = (sorted(filter(None, part), key=compute_digest) for part in parts)
    return train, rest


def _end_with_parent() -> None:
    """End this worker when its parent is killed, instead of waiting for work forever."""
    parent = parent_process()
    assert parent is not None
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def find_package(name: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def list_sources(root: Path) -> Iterator[Path]:
    """Yield the Python files below a folder, sorted by name, without tests and tables."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(set(below) - SKIPPED)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def extract_documentation(path: Path) -> list[str]:
    """Return the docstrings in a module, from top to bottom; none if it cannot be parsed."""
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's code
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError, RecursionError):  # ValueError: not UTF-8, or a null byte
            return []
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for node in nodes if (text := ast.get_docstring(node))]
