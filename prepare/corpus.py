"""Where text comes from. A corpus is a list of documents in an order that depends on nothing but their content.

`docstrings` is always there: the documentation inside the Python packages that are installed anyway.
"""

import ast
import hashlib
import importlib.util
import json
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

from prepare.machine import physical_cores
from prepare.manifest import DataError
from prepare.progress import Progress, tracked

PACKAGES = ("torch", "numpy", "sympy", "networkx")
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests"} | {
    "encodings",
    "idlelib",
    "lib2to3",
    "pydoc_data",
}
SPLITS = ("train", "val", "confirm")
TEXT_FILES = {".txt", ".md", ".rst", ".py"}


def canonical(corpus: str) -> str:
    """The name by which a manifest knows a corpus."""
    return corpus if corpus == "docstrings" else str(Path(corpus).resolve())


def documents(corpus: str, progress: Progress) -> list[str]:
    """All documents of a corpus: "docstrings", or the path of a file or folder. Raises DataError where it has none."""
    texts = docstrings(progress) if corpus == "docstrings" else from_path(Path(corpus), progress)
    ordered = sorted({digest(text): text for text in texts if text}.items())
    if not ordered:
        raise DataError(f"no text in {corpus}: give a folder or file of .txt, .md, .py, .jsonl or .parquet")
    return [text for _, text in ordered]  # by hash: shuffled, the same everywhere, each document once


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def split(texts: Iterable[str]) -> dict[str, list[str]]:
    """About 2 in 64 documents for validation, 2 for confirmation, the rest for training, by the content alone."""
    parts: dict[str, list[str]] = {name: [] for name in SPLITS}
    for text in texts:
        lot = int(digest(text)[-8:], 16) % 64  # the end: the beginning has set the order
        parts["val" if lot < 2 else "confirm" if lot < 4 else "train"].append(text)
    return parts


def docstrings(progress: Progress) -> list[str]:
    """One document per module of the standard library and PACKAGES; where a package is missing, the source instead."""
    roots = [Path(sysconfig.get_path("stdlib")), *filter(None, map(_package, PACKAGES))]
    files = [path for root in roots for path in sources(root)]
    with ProcessPoolExecutor(physical_cores(), get_context("spawn"), _end_with_parent) as pool:
        harvest = pool.map(module_documentation, files, chunksize=64)
        modules = list(tracked(harvest, len(files), "reading docstrings", progress))
    texts = ["\n\n".join(parts) for parts in modules if parts]
    if len(roots) <= len(PACKAGES):
        texts += [text for path in sources(roots[0]) if (text := _read(path))]
    return texts


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


def from_path(path: Path, progress: Progress) -> Iterator[str]:
    """Documents of a file, or of every text file below a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif path.exists():
        files = [path]
    else:
        raise DataError(f"no corpus {path}: give `docstrings`, or a file or folder that exists")
    for file in tracked(files, len(files), f"reading {path}", progress):
        yield from _from_file(file)


def _from_file(path: Path) -> Iterator[str]:
    if path.suffix in TEXT_FILES:
        yield _read(path)
    elif path.suffix == ".jsonl":
        with path.open() as lines:
            yield from (json.loads(line)["text"] for line in lines if line.strip())
    elif path.suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches(columns=["text"]):
            yield from batch.column(0).to_pylist()
