"""Prompts are Markdown files: front matter says how to call the model, the body what to tell it.

Below the system prompt and the line `<!-- opening -->` stands the opening message, a Jinja template. A line
`<!-- include FILE -->` stands for the text of a file. A style is a folder whose files replace the default's.
"""

import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from jinja2 import StrictUndefined, TemplateRuntimeError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from subagents import PromptError
from subagents.tools import describe_faults

NAMES = ("researcher", "mechanic", "reflector", "notebook")
OLDER = {"branch", "changes", "lessons", "outline", "recent", "refused", "source", "table"}
"""Facts that prompts of earlier versions ask for, and the default no longer."""
OPENING = "<!-- opening -->"
PREFIX = "cli:"  # of a model that is a program
MATTER = re.compile(r"\A---\n(.*?)^---(?:\n|\Z)", re.DOTALL | re.MULTILINE)
FAULTS = (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)  # PyYAML raises any
FILES = "[!.]*.md"  # not those that an editor locks or keeps
INCLUDE = re.compile(r"^<!-- include (\S+) -->$", re.MULTILINE)
LONGEST = 4_000_000  # characters of an opening, more than any model reads
LARGEST = 1_000_000  # number that a prompt may multiply


class _Jinja(ImmutableSandboxedEnvironment):
    """Takes no power, and multiplies only numbers, and only small ones: neither 9**9**9 nor "x" * 9**9 is computed."""

    intercepted_binops = frozenset({"*", "**", "%"})  # these are not computed while a template is parsed, either

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [abs(number) for number in (left, right) if isinstance(number, int | float)]
        if operator == "**" or len(sizes) < 2 or max(sizes) > LARGEST:
            raise TemplateRuntimeError(f"{operator} is not for this: small numbers can be multiplied, and that is all")
        return super().call_binop(context, operator, left, right)


JINJA = _Jinja(  # a session that somebody sends brings prompts of its own
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)
JINJA.globals.clear()  # pyright: ignore[reportUnknownMemberType] - without range, loops end


class Prompt(BaseModel):
    """The texts that an agent is given, and from the front matter, how its model is called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    fallback: str = ""  # the model that takes over a conversation in which the other refuses or is out
    effort: str = ""  # low to max; empty for the model's default, which servers other than Claude's need
    max_turns: int = Field(default=12, ge=1)
    max_tokens: int = Field(default=16_000, ge=256, le=10**6)
    max_spent: int = Field(default=500_000, ge=1_000)  # tokens of a whole conversation, read and written
    cadence: int = Field(default=1, ge=0)  # experiments from one post-mortem or consolidation to the next; 0: never
    system: str
    template: str

    def render_opening(self, facts: Mapping[str, Any]) -> str:
        """Return the opening message. Raises PromptError where it cannot be rendered from these facts."""
        try:
            parts, size = list[str](), 0
            for part in JINJA.from_string(self.template).generate(facts):
                parts.append(part)
                if (size := size + len(part)) > LONGEST:
                    raise ValueError(f"it is longer than {LONGEST:,} characters")
            return "".join(parts).strip()
        except (TemplateRuntimeError, *FAULTS, TypeError, MemoryError) as error:
            words = str(error) or type(error).__name__
            raise PromptError(f"a prompt cannot be rendered: {words}") from error

    @property
    def text(self) -> str:
        """The prompt as one text, the inverse of `parse_prompt`."""
        matter = yaml.safe_dump(self.model_dump(exclude={"system", "template"}, exclude_defaults=True), sort_keys=False)
        return f"---\n{matter}---\n{self.system}\n\n{OPENING}\n\n{self.template}\n"


def parse_prompt(text: str, name: str = "the prompt") -> Prompt:
    """Return the prompt of a text; errors call it `name`. Raises PromptError."""
    return _make_prompt(*split_front_matter(text, name), name)


def load_prompts(folder: Path, style: str = "default", base: str = "default") -> dict[str, Prompt]:
    """Return the prompts of a style by agent; it is a folder beside `default`, or any folder.

    What the style lacks comes from the folder `base`, and then from `default`. Each prompt is rendered once. Raises
    PromptError, with file, line and column where it can be told.
    """
    overlay = folder / (base if style == "default" else style)
    overlay = overlay if overlay.is_dir() and Path(style).name == style else Path(style)
    if not overlay.is_dir():
        known = ", ".join(sorted(path.name for path in folder.glob("*/")))
        raise PromptError(f"unknown prompt style {style!r}; the styles are {known}, or name a folder")
    folders = (overlay, folder / base, folder / "default")
    known = {path.name for path in folders[2].iterdir()} | {"README.md"}
    known |= {name for path in overlay.glob(FILES) for name in INCLUDE.findall(_read(path))}
    if unread := sorted(path.name for path in overlay.glob("[!.]*") if path.name not in known):
        raise PromptError(f"{overlay}: no agent reads {', '.join(unread)}; the files are {', '.join(sorted(known))}")
    if not any(path.name != "README.md" for path in overlay.glob(FILES)):
        raise PromptError(f"{overlay} holds no prompt: copy one of {folders[2]} into it")
    prompts = {name: _overlay(name, folders) for name in NAMES}
    for name, prompt in prompts.items():
        _check_opening(prompt, _overlay(name, folders[1:]), folders)
    return prompts


def _check_opening(prompt: Prompt, default: Prompt, folders: Sequence[Path]) -> None:
    """Render the opening once, from the facts that the default's asks for. Raises PromptError."""
    known, asked = (meta.find_undeclared_variables(JINJA.parse(each.template)) for each in (default, prompt))
    known |= OLDER
    for fact in sorted(asked - known):
        where = _find_place(rf"{{[{{%][^}}]*\b({fact})\b", folders)
        raise PromptError(f"{where}: no fact is called {fact!r}; there are {', '.join(sorted(known))}")
    try:
        prompt.render_opening(dict.fromkeys(known, "1"))
    except PromptError as error:
        frames = traceback.extract_tb(error.__cause__ and error.__cause__.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == "<template>" and frame.lineno]
        where = _find_line(prompt.template, lines[-1], folders) if lines else "the prompt"
        raise PromptError(f"{where}: {error}") from error


def _find_line(template: str, number: int, folders: Sequence[Path]) -> str:
    """Return file, line and column of a line of an opening; of the first such line, where there are several."""
    return _find_place(rf"(?m)^{re.escape(template.splitlines()[number - 1])}$", folders)


def _find_place(pattern: str, folders: Sequence[Path], files: str = FILES) -> str:
    """Return file, line and column, counted from 1, of the first match: of its group, if it has one."""
    for path in [path for folder in folders for path in sorted(folder.glob(files))]:
        if found := re.search(pattern, text := _read(path)):
            at = found.start(found.lastindex or 0)
            return f"{path}:{text.count(chr(10), 0, at) + 1}:{at - text.rfind(chr(10), 0, at)}"
    return "the prompt"


def split_front_matter(text: str, name: str = "the text") -> tuple[dict[str, Any], str]:
    """Return the keys and values between two lines of ---, and the rest. Raises PromptError."""
    if not (found := MATTER.match(text)):
        raise PromptError(f"{name}: front matter between two lines of --- is missing")
    try:
        matter: object = yaml.load(found[1], yaml.CSafeLoader) or {}
    except FAULTS as error:
        first_line, _, _ = str(error).partition("\n")
        mark: Any = getattr(error, "problem_mark", None)
        where = f":{mark.line + 2}:{mark.column + 1}" if mark else ""
        raise PromptError(f"{name}{where}: the front matter is not YAML: {first_line}") from error
    if not isinstance(matter, dict):
        raise PromptError(f"{name}: the front matter must be keys and values")
    return cast("dict[str, Any]", matter), text[found.end() :]


def _overlay(name: str, folders: Sequence[Path]) -> Prompt:
    """Return an agent's prompt, each part from the first folder that has it."""
    matter: dict[str, Any] = {}
    body = ""
    for path in [found for folder in reversed(folders) if (found := folder / f"{name}.md").is_file()]:
        own_matter, own_body = split_front_matter(_read(path), str(path))
        matter, body = matter | own_matter, own_body if own_body.strip() else body

    def include(line: re.Match[str]) -> str:
        texts = (_read(path).strip() for folder in folders if (path := folder / line[1]).is_file())
        if (text := next(texts, None)) is None or INCLUDE.search(text):
            where = _find_place(rf"(?m)^<!-- include ({re.escape(line[1])}) -->$", folders)
            fault = "is in no folder" if text is None else "is included, so it may include no other"
            raise PromptError(f"{where}: {line[1]} {fault}")
        return text

    return _make_prompt(matter, INCLUDE.sub(include, body), f"{folders[0]}/{name}.md", folders)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read: {error}") from error


def _make_prompt(matter: Mapping[str, Any], body: str, name: str, folders: Sequence[Path] = ()) -> Prompt:
    system, line, template = body.partition(OPENING)
    if not line:
        raise PromptError(f"{name}: the line {OPENING} is missing")
    try:
        JINJA.from_string(template.strip())
        prompt = Prompt(**matter, system=system.strip(), template=template.strip())
    except ValidationError as error:
        key = re.escape(str(error.errors()[0]["loc"][0]))
        where = _find_place(rf"(?m)^{key}\s*:", folders, Path(name).name) if folders else name
        raise PromptError(f"{where}: {describe_faults(error)}") from error
    except TypeError as error:
        raise PromptError(f"{name}: the front matter has a key that it cannot have: {error}") from error
    except TemplateSyntaxError as error:
        where = _find_line(template.strip(), error.lineno, folders) if folders else name
        raise PromptError(f"{where}: {error.message} (line {error.lineno} of the opening)") from error
    if not (prompt.system and prompt.template):  # the API refuses an empty text
        raise PromptError(f"{name}: nothing stands {'below' if prompt.system else 'above'} the line {OPENING}")
    return prompt
