"""Say how a session's runs are scored: by which metric, by whom, and in which words the user reads it.

Inside, every score is lower is better: that of a metric to maximize is its negative. Only this module turns it back.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Metric(BaseModel):
    """What a run is scored by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^\w[\w./-]{0,39}$")] = "val_bpb"
    goal: Literal["min", "max"] = "min"
    pattern: str = ""
    """Finds the number in a line of output, as its first group; empty for autoresearch's summary and METRIC lines."""

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
        """Return what turns a value into a score, and a score into a value."""
        return -1 if self.goal == "max" else 1

    @property
    def is_bpb(self) -> bool:
        """True for bits per byte, whose scale is known."""
        return self.name == "val_bpb"

    @property
    def direction(self) -> str:
        return "higher is better" if self.goal == "max" else "lower is better"

    def format_score(self, score: float) -> str:
        """Return a score as the user's value."""
        return self.format_number(self.sign * score)

    def format_change(self, change: float) -> str:
        """Return a change of the score as one of the user's value, with its sign and a true minus sign."""
        value = self.sign * change + 0.0
        return ("+" * (value >= 0) + self.format_number(value)).replace("-", "−")

    def format_number(self, number: float) -> str:
        """Return a number of the metric's scale: four decimals, or four digits where those would not suit it."""
        if self.is_bpb or not number or 0.1 <= abs(number) < 1e4:
            return f"{number:.4f}"
        return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.4g}"


class SeedPassing(BaseModel):
    """How the command is given a run's seed; where both are empty, it is not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: str = ""
    """Environment variable."""
    argument: str = ""
    """Argument that stands before the seed, at the end of the command."""


class TaskFile(BaseModel):
    """The content of nightshift.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str = ""
    """What a shell runs in the script's folder; empty for `python SCRIPT`."""
    editable: tuple[Text, ...] = ()
    """The files that candidates change, relative to the folder of nightshift.toml; empty for the script."""
    protected: tuple[Text, ...] = ()
    """Patterns of files that a run may not change; empty for all that git tracks and that are not editable."""
    metric: Metric = Metric()
    budget: Seconds = 300.0
    """Seconds that a run is meant to take."""
    timeout: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds after which a run is ended; 0 for twice the budget, and at least ten minutes."""
    checks: tuple[Text, ...] = ()
    """Commands that must succeed before the command runs."""
    data: tuple[Text, ...] = ()
    """Folders that a run may read, relative to nightshift.toml or to the home folder."""
    seed: SeedPassing = SeedPassing()


class Task(TaskFile):
    """How runs come about and are scored. The default is that of sessions recorded before there was another."""

    form: Literal["examined", "reported"] = "examined"
    """Examined: scored by us, by the protocol of `prepare`. Reported: a number that the script prints."""
    program: str = ""
    """The user's program.md."""

    @property
    def is_reported(self) -> bool:
        return self.form == "reported"

    @property
    def is_seeded(self) -> bool:
        """True if runs are given their seeds; otherwise runs of one candidate are only repeats."""
        return not self.is_reported or bool(self.seed.env or self.seed.argument)

    @property
    def noun(self) -> str:
        """Return what runs of one candidate differ by."""
        return "seed" if self.is_seeded else "repeat"

    @property
    def caveat(self) -> str:
        """Return what must be said with every verdict; empty for examined scores."""
        return "reported by the script, not audited" if self.is_reported else ""

    def describe(self) -> str:
        """Return the form, the metric and who states it, in one line."""
        if not self.is_reported:
            return "examined: val_bpb, lower is better, is measured by Nightshift and audited"
        seeds = "" if self.is_seeded else "; the script is given no seed, so that runs of it are repeats"
        metric = f"{self.metric.name}, {self.metric.direction}, is {self.caveat}"
        return f"reported: {metric}; each run is `{self.command}`{seeds}"
