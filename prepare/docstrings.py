"""The corpus that is always there: the documentation inside the Python packages that are installed anyway."""

import ast
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

from prepare.corpus import digest
from prepare.machine import physical_cores
from prepare.progress import Progress, tracked

PACKAGES = ("torch", "numpy", "sympy", "networkx")
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests"} | {
    "encodings",
    "idlelib",
    "lib2to3",
    "pydoc_data",
}


def harvest(progress: Progress) -> list[str]:
    """One document per module of the standard library and PACKAGES; where a package is missing, the source instead.

    By hash: shuffled, but the same everywhere.
    """
    roots = [Path(sysconfig.get_path("stdlib")), *filter(None, map(_package, PACKAGES))]
    files = [path for root in roots for path in sources(root)]
    with ProcessPoolExecutor(physical_cores(), get_context("spawn"), _end_with_parent) as pool:
        found = pool.map(module_documentation, files, chunksize=64)
        modules = list(tracked(found, len(files), "reading docstrings", progress))
    texts = ["\n\n".join(parts) for parts in modules if parts]
    if len(roots) <= len(PACKAGES):
        texts += [text for path in sources(roots[0]) if (text := _read(path))]
    return sorted(texts, key=digest)


def _end_with_parent() -> None:
    """Workers of a killed process would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def sources(root: Path) -> Iterator[Path]:
    """Python files below a folder in the order of their names, without tests and tables."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(set(below) - SKIPPED)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def module_documentation(path: Path) -> list[str]:
    """The docstrings of a module and of everything in it, from top to bottom."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        try:
            tree = ast.parse(_read(path))
        except (SyntaxError, ValueError, RecursionError):
            return []
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return ""
