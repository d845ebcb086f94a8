"""Split a Markdown file into its YAML front matter and its body."""

import re
from typing import Any, cast

import yaml

MATTER = re.compile(r"\A---\n(.*?)^---(?:\n|\Z)", re.DOTALL | re.MULTILINE)
FAULTS = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""PyYAML raises all of these for text that is not what its tags promise."""


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return the keys and values between two lines of ---, and the rest. Raises ValueError."""
    if not (found := MATTER.match(text)):
        raise ValueError("front matter between two lines of --- is missing")
    try:
        matter: object = yaml.load(found[1], yaml.CSafeLoader) or {}
    except FAULTS as error:
        first_line, _, _ = str(error).partition("\n")
        raise ValueError(f"the front matter is not YAML: {first_line}") from error
    if not isinstance(matter, dict):
        raise ValueError("the front matter must be keys and values")  # noqa: TRY004 - the text is wrong, not its type
    return cast("dict[str, Any]", matter), text[found.end() :]
