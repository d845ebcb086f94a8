"""What a session's runs are scored by and by whom, and the words in which the user reads it.

Inside, every score is lower is better: that of a metric to maximize is its negative. Only Metric turns it back.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Words = tuple[Annotated[str, Field(pattern=r"\S")], ...]


class Metric(BaseModel):
    """What a run is scored by."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^\w[\w./-]{0,39}$")] = "val_bpb"
    goal: Literal["min", "max"] = "min"
    pattern: str = ""
    """Its first group is the number in a line of output; empty for autoresearch's summary and METRIC lines."""

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        try:
            if pattern and not re.compile(pattern).groups:
                raise ValueError("it needs a group, in parentheses, around the number")
        except re.error as error:
            raise ValueError(f"it is no regular expression: {error}") from error
        return pattern

    @property
    def sign(self) -> int:
        """Turn a value into a score, and a score into a value, as a factor."""
        return -1 if self.goal == "max" else 1

    @property
    def is_bpb(self) -> bool:
        """Whether it is bits per byte, whose scale is known."""
        return self.name == "val_bpb"

    def format_score(self, score: float) -> str:
        """Return a score as the user's value."""
        return self.format_size(self.sign * score)

    def format_change(self, change: float) -> str:
        """Return a change of the score as one of the user's value, with its sign and a true minus sign."""
        value = self.sign * change + 0.0
        return ("+" * (value >= 0) + self.format_size(value)).replace("-", "−")

    def format_size(self, number: float) -> str:
        """Return a number on the metric's scale in four decimals, or in four digits where those do not suit it."""
        if self.is_bpb or not number or 0.1 <= abs(number) < 1e4:
            return f"{number:.4f}"
        return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.4g}"


class Task(BaseModel):
    """How runs come about and are scored. The default is that of sessions recorded before there was another."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    form: Literal["examined", "reported"] = "examined"
    """Examined: scored by us, by the protocol of `prepare`. Reported: by a number that the script prints."""
    command: str = ""
    """What a shell runs in the script's folder."""
    editable: Words = ()
    """The files that candidates change, relative to the folder of nightshift.toml."""
    protected: Words = ()
    """Patterns of files that a run may not change; empty for all that git tracks and that are not editable."""
    metric: Metric = Metric()
    budget: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """Seconds that a run is meant to take."""
    timeout: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds after which a run is ended; 0 for twice the budget, and at least ten minutes."""
    checks: Words = ()
    """Commands that must succeed before the command runs."""
    data: Words = ()
    """Folders that a run may read, relative to nightshift.toml or to the home folder."""
    seed: dict[Literal["env", "argument"], str] = {}
    """How the command is given a run's seed; empty where it is not."""
    program: str = ""
    """The user's program.md."""

    @property
    def is_reported(self) -> bool:
        return self.form == "reported"

    @property
    def noun(self) -> str:
        """Name what runs of one candidate differ by: their seeds, where they are given any."""
        return "seed" if self.seed or not self.is_reported else "repeat"

    @property
    def caveat(self) -> str:
        """Say what must be said with every verdict; nothing for examined scores."""
        return "reported by the script, not audited" if self.is_reported else ""

    def describe(self) -> str:
        """Return form, metric and who states it, in one line."""
        if not self.is_reported:
            return "examined: val_bpb, lower is better, measured by Nightshift"
        seeds = "; no seed is passed, so runs of one candidate are repeats" * (not self.seed)
        direction = "higher" if self.metric.goal == "max" else "lower"
        return f"{self.metric.name}, {direction} is better, {self.caveat}; a run is `{self.command}`{seeds}"


BPB, EXAMINED = Metric(), Task()
