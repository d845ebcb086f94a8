"""What a session's runs are scored by and by whom, and the words in which the user reads it.

Inside, every score is lower is better: that of a metric to maximize is its negative. Only Metric turns it back.
"""

import re
from fnmatch import fnmatchcase
from posixpath import normpath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_PATH = re.compile(r"(\w[\w. -]*(?<!\.py)/)*\w[\w. -]*")
"""What a pattern can stand for: no hidden file, nothing outside the folder, nothing below a script."""
_OURS = ("musings", "sessions")  # where Nightshift writes
Words = tuple[Annotated[str, Field(pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")], ...]


class Metric(BaseModel):
    """What a run is scored by, and how its numbers are written; one that is not known is written as an empty text."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^\w[\w./-]{0,39}$")] = "val_bpb"
    goal: Literal["min", "max"] = "min"
    pattern: str | None = None

    @property
    def sign(self) -> int:
        """Turn values into scores, and scores into values."""
        return -1 if self.goal == "max" else 1

    @property
    def is_bpb(self) -> bool:
        return self.name == "val_bpb"

    def format_exact(self, number: float) -> str:
        """Return a number on the metric's scale in six decimals, or in seven digits where those say too little."""
        return f"{number + 0.0:.6f}" if self.is_bpb or not 0 < abs(number) < 0.1 else f"{number:.7g}"

    def format_score(self, score: float | None) -> str:
        """Return a score as the user's value."""
        return "" if score is None else self._format(self.sign * score)

    def format_change(self, change: float | None) -> str:
        """Return a change of the score as one of the user's value, with its sign and a true minus sign."""
        text = "" if change is None else self.format_size(self.sign * change)
        return f"+{text}" if text and text[0] != "−" else text

    def format_size(self, number: float | None) -> str:
        """Return a distance between scores, such as a gain or its error, with a true minus sign."""
        return "" if number is None else self._format(number).replace("-", "−")

    def _format(self, number: float) -> str:
        """Return a number on the metric's scale in four decimals, or in four digits where those do not suit it."""
        if self.is_bpb or not number or 0.1 <= abs(number) < 1e4:
            return f"{number:z.4f}"
        return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.4g}"


class Task(BaseModel):
    """How runs come about and are scored; docs/nightshift-toml.md explains the keys. The default is of old sessions."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    form: Literal["examined", "reported"] = "examined"
    command: Annotated[str, Field(pattern=r"^[^\x00]*[^\s\x00][^\x00]*$|^$")] = ""
    editable: tuple[Annotated[str, Field(pattern=r"^(\.?[\w*?][\w.*? -]*/)*\.?[\w*?][\w.*? -]*$")], ...] = ()
    protected: Words = ()
    metric: Metric = Metric()
    budget: float = Field(default=300.0, gt=0, le=1e6, strict=True)
    timeout: float = Field(default=0.0, ge=0, le=1e6, strict=True)
    checks: Words = ()
    data: Words = ()
    seed: dict[Literal["env", "argument"], Annotated[str, Field(pattern=r"\S")]] = {}
    program: str = ""
    fixed: tuple[str, ...] = ()  # options whose defaults have no effect; none in sessions of before
    is_repeated: bool = Field(default=False, exclude=True)
    """Whether runs of the baseline agree to the last digit; the state observes it, and it is not stored."""

    @property
    def is_reported(self) -> bool:
        return self.form == "reported"

    @property
    def named(self) -> tuple[str, ...]:
        """The editable files that are named, not only matched by a pattern."""
        return tuple(path for path in self.editable if "*" not in path and "?" not in path)

    @property
    def has_tree(self) -> bool:
        """Whether candidates are trees: several files may change, or new ones appear."""
        return len(self.editable) > 1 or self.named != self.editable

    def is_editable(self, path: str) -> bool:
        """Return whether candidates may change a file: named, or fitting a pattern and neither data nor protected."""
        whole = [normpath(name) for name in (*self.data, *_OURS)]
        barred = (*self.protected, *whole, *(f"{name}/*" for name in whole))
        fits, is_barred = (any(fnmatchcase(path, p) for p in patterns) for patterns in (self.editable, barred))
        return path in self.named or (fits and not is_barred and _PATH.fullmatch(path) is not None)

    @property
    def noun(self) -> str:
        """Name what runs of one candidate differ by: their seeds, where they are given any that make a difference."""
        return "seed" if (self.seed or not self.is_reported) and not self.is_repeated else "repeat"

    @property
    def caveat(self) -> str:
        """Say what must be said with every verdict; nothing for examined scores."""
        return "reported by the script, not audited" if self.is_reported else ""

    def describe(self) -> str:
        """Return form, metric and who states it, in one line."""
        if not self.is_reported:
            which = f"; candidates may change {', '.join(self.editable)}" * self.has_tree
            return f"examined: val_bpb, lower is better, measured by Nightshift{which}"
        seeds = "; no seed is passed, so runs of one candidate are repeats" * (not self.seed)
        direction = "higher" if self.metric.goal == "max" else "lower"
        return f"{self.metric.name}, {direction} is better, {self.caveat}; a run is `{self.command}`{seeds}"


BPB, EXAMINED = Metric(), Task()
