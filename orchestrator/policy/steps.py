"""The steps that can be due: one small frozen type each."""

from dataclasses import dataclass

from orchestrator.core import events as ev


@dataclass(frozen=True, slots=True)
class CommitBaseline:
    """Commit the baseline: train.py with its constants fitted to the profile."""

    task_id: str = "fit"
    """Name of the step's task, unique until the session is restarted."""
    resources: tuple[str, ...] = ("fit",)
    """Exclusive resources: only one running step holds each."""


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
class Ablate:
    """Propose to revert a kept change that is not certain."""

    experiment: int
    proposal: ev.Proposal
    resources: tuple[str, ...] = ("propose",)

    @property
    def task_id(self) -> str:
        return f"ablate {self.experiment}"


@dataclass(frozen=True, slots=True)
class FallBack:
    """Let the optimizer propose in place of the researcher."""

    reason: str
    task_id: str = "fall back"
    resources: tuple[str, ...] = ("propose",)


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
    """Close a repeat before it costs a run."""

    reason: str


@dataclass(frozen=True, slots=True)
class Implement(_OnExperiment):
    """Have a proposal turned into a candidate."""


@dataclass(frozen=True, slots=True)
class Rebase(_OnExperiment):
    """Rebase a waiting candidate onto the new incumbent."""

    parent: int

    @property
    def task_id(self) -> str:
        return f"rebase {self.experiment} on {self.parent}"


@dataclass(frozen=True, slots=True)
class Train(_OnExperiment):
    """Run a candidate once, or the incumbent or baseline once more."""

    run: int
    slot: int
    seed: int
    plan: ev.EvaluationPlan

    @property
    def task_id(self) -> str:
        return f"train {self.experiment}.{self.run}"

    @property
    def resources(self) -> tuple[str, ...]:
        return (f"experiment {self.experiment}", f"slot {self.slot}")


@dataclass(frozen=True, slots=True)
class Repair(_OnExperiment):
    """Have a crashed candidate repaired."""

    attempt: int

    @property
    def task_id(self) -> str:
        return f"repair {self.experiment}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class Judge(_OnExperiment):
    """Record a verdict."""

    verdict: ev.Verdict

    @property
    def resources(self) -> tuple[str, ...]:
        # One at a time: a keep changes what the next candidate is judged against.
        return (f"experiment {self.experiment}", "verdict")


@dataclass(frozen=True, slots=True)
class Promote(_OnExperiment):
    """Advance the research branch to a kept candidate."""


@dataclass(frozen=True, slots=True)
class Reflect(_OnExperiment):
    """Have a post-mortem written."""


@dataclass(frozen=True, slots=True)
class SkipReflection(_OnExperiment):
    """Close an experiment without a post-mortem."""

    reason: str

    @property
    def task_id(self) -> str:
        return f"close {self.experiment}"  # the name that recorded sessions use


@dataclass(frozen=True, slots=True)
class Certify:
    """Record the night's gain, measured by runs that no decision has used."""

    certificate: ev.Certified
    task_id: str = "certify"
    resources: tuple[str, ...] = ("certify",)


@dataclass(frozen=True, slots=True)
class Stop:
    """End the session."""

    reason: str
    task_id: str = "stop"
    resources: tuple[str, ...] = ("stop",)


Edit = Implement | Rebase | Repair
Step = (
    CommitBaseline
    | Propose
    | Ablate
    | FallBack
    | Refuse
    | Edit
    | Train
    | Judge
    | Promote
    | Reflect
    | SkipReflection
    | Certify
    | Stop
)
