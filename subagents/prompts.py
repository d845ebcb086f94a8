"""Prompts are Markdown files: front matter says how to ask, the body what to say.

The body's first half is the system prompt, the same all night; below the line `<!-- opening -->` stands the opening
message, a Jinja template. A line `<!-- include FILE -->` stands for the text of that file. A style is a folder whose
files replace the default's, so that two styles differ in nothing else: front matter key by key, and the body if any.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import yaml
from jinja2 import Environment, StrictUndefined, TemplateSyntaxError, UndefinedError, meta
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from subagents.tools import describe_faults

NAMES = ("researcher", "mechanic", "reflector")
OPENING = "<!-- opening -->"
INCLUDE = re.compile(r"^<!-- include (\S+) -->$", re.MULTILINE)
MATTER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
JINJA = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701 - no HTML


class PromptError(Exception):
    """A prompt cannot be used; the message says which and why in one line."""


class ModelSettings(BaseModel):
    """The front matter: how a model is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    effort: str = ""
    """low, medium, high, xhigh or max; empty leaves it to the model, as servers other than Claude's expect."""
    max_turns: int = Field(default=12, ge=1)
    max_tokens: int = Field(default=16_000, ge=256)
    cadence: int = Field(default=1, ge=0)
    """Of reflection: after every keep and every n-th other experiment; 0 is never."""


@dataclass(frozen=True)
class Prompt:
    """What an agent is told, and how it is asked."""

    settings: ModelSettings
    system: str
    template: str

    @property
    def model(self) -> str:
        return self.settings.model

    @property
    def effort(self) -> str:
        return self.settings.effort

    @property
    def max_turns(self) -> int:
        return self.settings.max_turns

    @property
    def max_tokens(self) -> int:
        return self.settings.max_tokens

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """The facts that the opening asks for."""
        return frozenset(meta.find_undeclared_variables(JINJA.parse(self.template)))

    def opening(self, facts: Mapping[str, Any]) -> str:
        """The opening message. Raises PromptError where it asks for a fact that is not supplied."""
        try:
            return JINJA.from_string(self.template).render(facts).strip()
        except UndefinedError as error:
            raise PromptError(f"a prompt asks for something unknown: {error}") from error

    def asking(self, model: str) -> "Prompt":
        """The same prompt for another model."""
        return replace(self, settings=self.settings.model_copy(update={"model": model}))

    @property
    def text(self) -> str:
        """The whole prompt in one text, as `parse` reads it."""
        matter = yaml.safe_dump(self.settings.model_dump(exclude_defaults=True), sort_keys=False)
        return f"---\n{matter}---\n{self.system}\n\n{OPENING}\n\n{self.template}\n"


def parse_prompt(text: str, name: str = "the prompt") -> Prompt:
    """A prompt from one text. Raises PromptError."""
    matter, body = _split(text, name)
    return _make_prompt(matter, body, name)


def load_prompts(folder: Path, style: str = "default") -> dict[str, Prompt]:
    """All prompts of a style, by agent: a folder beside `default`, or any folder. Raises PromptError."""
    overlay = folder / style if (folder / style).is_dir() else Path(style)
    if not overlay.is_dir():
        known = ", ".join(sorted(path.name for path in folder.glob("*/")))
        raise PromptError(f"there is no prompt style {style!r}; there are {known}, or give a folder")
    return {name: _overlay(name, (overlay, folder / "default")) for name in NAMES}


def _overlay(name: str, folders: Sequence[Path]) -> Prompt:
    """A prompt from the folders' files of that name, the first of them before the second."""
    matter: dict[str, Any] = {}
    body = ""
    for path in [found for folder in reversed(folders) if (found := folder / f"{name}.md").is_file()]:
        more, other = _split(_read(path), str(path))
        matter, body = matter | more, other if other.strip() else body

    def included(line: re.Match[str]) -> str:
        found = next((path for folder in folders if (path := folder / line[1]).is_file()), folders[-1] / line[1])
        return _read(found).strip()

    return _make_prompt(matter, INCLUDE.sub(included, body), f"prompt {name!r} in {folders[0]}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read: {error}") from error


def _split(text: str, name: str) -> tuple[dict[str, Any], str]:
    if not (found := MATTER.match(text)):
        raise PromptError(f"{name}: front matter between two lines of --- is missing")
    try:
        matter: object = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise PromptError(f"{name}: the front matter is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(matter, dict):
        raise PromptError(f"{name}: the front matter must be keys and values")
    return cast("dict[str, Any]", matter), text[found.end() :]


def _make_prompt(matter: Mapping[str, Any], body: str, name: str) -> Prompt:
    system, line, template = body.partition(OPENING)
    if not line:
        raise PromptError(f"{name}: the line {OPENING} is missing")
    try:
        JINJA.parse(template.strip())
        return Prompt(ModelSettings.model_validate(matter), system.strip(), template.strip())
    except ValidationError as error:
        raise PromptError(f"{name}: {describe_faults(error)}") from error
    except TemplateSyntaxError as error:
        raise PromptError(f"{name}: {error.message} (line {error.lineno} of the opening)") from error
