"""Define the steps that can be due: one frozen type for each kind of work, and one that only appends an event."""

from dataclasses import dataclass
from typing import Literal

from orchestrator.core import events as ev

BATCH = 8  # most proposals of one request, which stays within a batch of numbers, and has it to itself


@dataclass(frozen=True, slots=True)
class Append:
    """Append an event that the policy has decided by itself."""

    event: ev.Event
    task_id: str  # name of the step's task, unique in a life of the session
    resources: tuple[str, ...] = ()  # exclusive resources: one step at a time holds each


@dataclass(frozen=True, slots=True)
class CommitBaseline:
    """Commit the baseline: train.py with its constants fitted to the profile."""

    task_id: str = "fit"
    resources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask the researcher for up to `count` proposals, numbered from `first`."""

    first: int
    count: int
    attempt: int

    @property
    def resources(self) -> tuple[str, ...]:
        return (f"proposals {(self.first - 1) // BATCH}",)

    @property
    def task_id(self) -> str:
        return f"propose {self.first}" + f".{self.attempt}" * (self.attempt > 0)


@dataclass(frozen=True, slots=True)
class _OnExperiment:
    experiment: int
    task_id: str

    @property
    def resources(self) -> tuple[str, ...]:
        return (f"experiment {self.experiment}",)


@dataclass(frozen=True, slots=True)
class Edit(_OnExperiment):
    """Implement a proposal, repair a candidate, or rebase it on the new incumbent."""

    how: Literal["implemented", "rebased", "repaired"]
    parent: int | None = None  # the candidate that it is stacked on; None for the best

    @property
    def resources(self) -> tuple[str, ...]:
        return (f"experiment {self.experiment}", *("stack",) * (self.parent is not None))


@dataclass(frozen=True, slots=True)
class Train(_OnExperiment):
    """Run a candidate, the incumbent or the baseline once."""

    run: int
    slot: int
    seed: int
    plan: ev.EvaluationPlan
    again: bool = False  # it is closed: several runs of it may be under way

    @property
    def resources(self) -> tuple[str, ...]:
        return (f"slot {self.slot}",) if self.again else (f"experiment {self.experiment}", f"slot {self.slot}")


@dataclass(frozen=True, slots=True)
class Promote(_OnExperiment):
    """Advance the research branch to a kept candidate."""


@dataclass(frozen=True, slots=True)
class Reflect(_OnExperiment):
    """Write the post-mortem of a judged experiment."""


Step = CommitBaseline | Propose | Edit | Train | Promote | Reflect | Append
