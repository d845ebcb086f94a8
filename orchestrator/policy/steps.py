from dataclasses import dataclass

from orchestrator.core import events as ev


@dataclass(frozen=True, slots=True)
class CommitBaseline:
    """Commit the baseline: train.py with its constants fitted to the profile."""

    task_id: str = "fit"
    """A name that is used once in a life."""
    resources: tuple[str, ...] = ("fit",)
    """Where only one step can be at a time."""


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask the researcher for up to `count` proposals, numbered from `first`."""

    first: int
    count: int
    attempt: int
    resources: tuple[str, ...] = ("propose",)

    @property
    def task_id(self) -> str:
        return f"propose {self.first}" + f".{self.attempt}" * (self.attempt > 0)


@dataclass(frozen=True, slots=True)
class _OnExperiment:
    experiment: int

    @property
    def task_id(self) -> str:
        return f"{type(self).__name__.lower()} {self.experiment}"

    @property
    def resources(self) -> tuple[str, ...]:
        return (f"experiment {self.experiment}",)


@dataclass(frozen=True, slots=True)
class Refuse(_OnExperiment):
    reason: str


@dataclass(frozen=True, slots=True)
class Implement(_OnExperiment):
    pass


@dataclass(frozen=True, slots=True)
class _OnParent(_OnExperiment):
    parent: int

    @property
    def task_id(self) -> str:
        return f"{type(self).__name__.lower()} {self.experiment} on {self.parent}"


@dataclass(frozen=True, slots=True)
class Rebase(_OnParent):
    """Carry a waiting candidate over to the new best."""


@dataclass(frozen=True, slots=True)
class Train(_OnExperiment):
    run: int
    slot: int
    seed: int

    @property
    def task_id(self) -> str:
        return f"train {self.experiment}.{self.run}"

    @property
    def resources(self) -> tuple[str, ...]:
        return (f"experiment {self.experiment}", f"slot {self.slot}")


@dataclass(frozen=True, slots=True)
class Repair(_OnExperiment):
    attempt: int

    @property
    def task_id(self) -> str:
        return f"repair {self.experiment}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class Judge(_OnExperiment):
    verdict: ev.Verdict


@dataclass(frozen=True, slots=True)
class Promote(_OnExperiment):
    pass


@dataclass(frozen=True, slots=True)
class Reflect(_OnExperiment):
    pass


@dataclass(frozen=True, slots=True)
class SkipReflection(_OnExperiment):
    reason: str

    @property
    def task_id(self) -> str:
        return f"close {self.experiment}"  # its name in sessions recorded before it was renamed


@dataclass(frozen=True, slots=True)
class Stop:
    reason: str
    task_id: str = "stop"
    resources: tuple[str, ...] = ("stop",)


Step = (
    CommitBaseline
    | Propose
    | Refuse
    | Implement
    | Rebase
    | Train
    | Repair
    | Judge
    | Promote
    | Reflect
    | SkipReflection
    | Stop
)
