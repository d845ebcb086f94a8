"""Keep the files that a candidate may change in one text, so that whatever takes a script takes several files, too."""

import ast
import re
from collections.abc import Mapping
from contextlib import suppress

NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What is raised for text that does not parse (a null byte is a ValueError), or is nested too deeply to be walked."""
_HEADER = re.compile(r"=== (.+) \((\d{1,12}) characters\)\n")


def join_files(files: Mapping[str, str]) -> str:
    """Return files by path as one text, outer folders first; a single one whose path is empty as it is."""
    paths = sorted(files, key=lambda path: (path.count("/"), path))
    parts = (f"=== {path} ({len(files[path])} characters)\n{files[path]}\n" for path in paths)
    return files[""] if "" in files else "".join(parts)


def split_files(source: str) -> dict[str, str]:
    """Return the files of such a text by path; any other text as a single one whose path is empty."""
    files, end = dict[str, str](), 0
    while header := _HEADER.match(source, end):
        start, end = header.end(), header.end() + int(header[2]) + 1
        files[header[1]] = source[start : end - 1]
    return files if files and end == len(source) else {"": source}


def parse_files(source: str) -> ast.Module:
    """Return the statements of all files that are Python, one file after another."""
    tree = ast.Module([], [])
    for text in split_files(source).values():
        with suppress(*NOT_PYTHON):
            tree.body += ast.parse(text).body
    return tree
