"""What is due, and what is worth keeping: pure functions of the state, and every threshold with its reason."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt

from orchestrator.events import Discarded, Failed, Kept, Proposal, Verdict
from orchestrator.state import Broken, Candidate, Decided, Idea, Stage, State, Training

BASELINE_RUNS = 3
"""The fewest that give a spread at all; confirmations of candidates sharpen it later."""
PRIOR_SIGMA = 0.004
PRIOR_WEIGHT = 2
"""Two degrees of freedom alone may come out near zero by luck; so σ is pooled with what the cpu profile showed."""
FUTILE = 0.5
"""A first run less than half a standard error better is not worth a second: a true 3σ gain fails here in 2 of 100."""
SURE = 3.0
"""Standard errors of gain that a keep needs, over at least MIN_RUNS seeds."""
MIN_RUNS = 2
"""Nothing is kept on one seed: the first run is the one that luck has chosen."""
MAX_RUNS = 4
"""After four seeds the mean moves too little to be worth another run."""
SIMPLER_LINES = 3
"""Within the noise, a candidate shorter by this many lines may be kept: less code is a result, too."""
AHEAD = 1
"""Candidates ready behind each one that trains: enough that no slot waits, few enough that none goes stale."""
UNANSWERED = 3
"""Rounds in a row without an answer from the researcher after which the night ends."""
ABORTED = 3
"""Runs in a row lost to the machine after which it is the machine that needs attention."""
FINISH = 1.15
"""Nothing is started with less time left than its expected length times this."""
REPEAT_EXPIRY = 20
"""A knob turned the same way from the same base may be tried again after so many other experiments."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Commit the baseline: train.py with its constants fitted to the profile."""

    lane: str = "fit"


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask the researcher for up to `count` proposals, numbered from `first`."""

    first: int
    count: int
    attempt: int

    @property
    def lane(self) -> str:
        return f"propose {self.first}" + f".{self.attempt}" * (self.attempt > 0)


@dataclass(frozen=True, slots=True)
class _OnExperiment:
    experiment: int

    @property
    def lane(self) -> str:
        return f"{type(self).__name__.lower()} {self.experiment}"


@dataclass(frozen=True, slots=True)
class Refuse(_OnExperiment):
    reason: str


@dataclass(frozen=True, slots=True)
class Implement(_OnExperiment):
    pass


@dataclass(frozen=True, slots=True)
class _OnBase(_OnExperiment):
    base: int

    @property
    def lane(self) -> str:
        return f"{type(self).__name__.lower()} {self.experiment} on {self.base}"


@dataclass(frozen=True, slots=True)
class Rebase(_OnBase):
    """Carry a waiting candidate over to the new best."""


@dataclass(frozen=True, slots=True)
class Train(_OnExperiment):
    run: int
    slot: int
    seed: int

    @property
    def lane(self) -> str:
        return f"train {self.experiment}.{self.run}"


@dataclass(frozen=True, slots=True)
class Repair(_OnExperiment):
    attempt: int

    @property
    def lane(self) -> str:
        return f"repair {self.experiment}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class Judge(_OnExperiment):
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Promote(_OnExperiment):
    pass


@dataclass(frozen=True, slots=True)
class Reflect(_OnExperiment):
    pass


@dataclass(frozen=True, slots=True)
class Close(_OnExperiment):
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    reason: str
    lane: str = "stop"


Step = Fit | Propose | Refuse | Implement | Rebase | Train | Repair | Judge | Promote | Reflect | Close | Stop


def due(state: State) -> tuple[Step, ...]:
    """The steps that should be under way now, most urgent first."""
    if state.ended:
        return ()
    if state.fitted is None:
        return (Fit(),)
    steps = [step for number, stage in state.open.items() for step in _next(state, number, stage)]
    if any(isinstance(step, Promote) for step in steps):
        # The best is about to change: what depends on it waits for the moment that this takes.
        steps = [step for step in steps if isinstance(step, Promote | Reflect | Close)]
    else:
        steps += _grants(state)
    reason = stopping(state)
    if not reason:
        return (*steps, *_proposals(state))
    steps = [step for step in steps if not isinstance(step, Implement | Rebase | Repair)]
    busy = any(isinstance(stage, Training) for stage in state.open.values())
    return tuple(steps) if steps or busy else (Stop(reason),)


def stopping(state: State) -> str:
    """Why nothing new is started any more; empty while the night goes on."""
    limits = state.session.limits
    closed = sum(1 for finding in state.findings if finding.experiment > 0)
    baseline = state.findings[0].verdict if state.findings else None
    match state:
        case _ if state.stopping:
            return state.stopping
        case _ if isinstance(baseline, Failed) and not state.best:
            return f"the baseline does not train: {baseline.reason}"
        case _ if state.now + FINISH * expected_seconds(state) > state.deadline:
            return f"the {limits.hours:g} hours are over"
        case _ if limits.experiments is not None and closed >= limits.experiments:
            return f"{closed} experiments are done"
        case _ if limits.usd is not None and state.usd >= limits.usd:
            return f"${limits.usd:g} are spent"
        case _ if state.unanswered >= UNANSWERED:
            return f"the researcher gave no usable answer {UNANSWERED} times in a row"
        case _ if state.aborted >= ABORTED:
            return f"the machine failed {ABORTED} times in a row"
        case _:
            return ""


def expected_seconds(state: State) -> float:
    """Wall seconds that the next run will probably take: the longest of the last few."""
    return max(state.run_seconds, default=state.session.profile.expected_seconds)


def seed(state: State, experiment: int, run: int) -> int:
    """A seed that nobody has chosen: drawn from the session's, the experiment's number and the run's."""
    digest = hashlib.sha256(f"{state.session.seed}/{experiment}/{run}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def sigma(state: State) -> float:
    """Standard deviation of one run's val_bpb over seeds, pooled over the session."""
    spread = state.spread
    return sqrt((spread.squares + PRIOR_WEIGHT * PRIOR_SIGMA**2) / (spread.freedom + PRIOR_WEIGHT))


def verdict(state: State, number: int, candidate: Candidate) -> Verdict | None:
    """Kept, discarded, or None where another seed is to decide."""
    if state.best is None:
        return _baseline_verdict(state, candidate)
    mark, runs, deviation = state.best.mark, len(candidate.scores), sigma(state)
    error = deviation * sqrt(1 / runs + 1 / len(state.best.scores))
    gain = mark - candidate.mean
    ratio = f"{gain / error:+.1f} standard errors over {runs} seed{'s' * (runs > 1)}"

    def keep(reason: str) -> Kept:
        lowest = min(mark, candidate.mean)
        return Kept(
            experiment=number, mean=candidate.mean, gain=gain, error=error, sigma=deviation, mark=lowest, reason=reason
        )

    def discard(reason: str) -> Discarded:
        return Discarded(experiment=number, mean=candidate.mean, gain=gain, error=error, sigma=deviation, reason=reason)

    simpler = candidate.made.removed - candidate.made.added >= SIMPLER_LINES and gain > -FUTILE * error
    if gain < FUTILE * error and not simpler:
        return discard(f"{'worse than' if gain < -2 * error else 'no better than'} the best: {ratio}")
    if runs >= MIN_RUNS and gain >= SURE * error:
        return keep(f"better beyond the noise: {ratio}")
    if runs >= MIN_RUNS and simpler:
        return keep(f"as good as the best with fewer lines: {ratio}")
    if runs >= MAX_RUNS:
        return discard(f"not beyond the noise: {ratio}, and a keep needs {SURE:g}")
    if stopping(state):
        return discard(f"promising, but the night ended before it could be confirmed: {ratio}")
    return None


def repeats(state: State, proposal: Proposal) -> str:
    """Why this was tried already; empty if it was not."""
    best = state.best.experiment if state.best else 0
    knob = proposal.knob
    if knob is None:
        return ""
    if "seed" in knob.parameter.lower():
        return "another seed is not an improvement: the orchestrator assigns the seeds"
    for finding in state.findings[-REPEAT_EXPIRY:]:
        if finding.against == best and finding.proposal.knob == knob and isinstance(finding.verdict, Discarded):
            return f"{knob.parameter} {knob.direction} {knob.value}".strip() + f" was experiment {finding.experiment}"
    return ""


def duplicate(state: State, number: int, fingerprint: str) -> str:
    """Why this source need not be trained; empty if it must."""
    if state.fitted and fingerprint == state.fitted.fingerprint and state.best and state.best.experiment == 0:
        return "it changes nothing but comments or layout"
    for finding in state.findings:
        if finding.made and finding.made.fingerprint == fingerprint and finding.experiment != number:
            return f"it is the same code as experiment {finding.experiment}"
    return ""


def _next(state: State, number: int, stage: Stage) -> Iterator[Step]:
    """What an experiment needs next; runs are granted apart, since slots are scarce."""
    match stage:
        case Idea(proposal):
            reason = repeats(state, proposal)
            yield Refuse(number, reason) if reason else Implement(number)
        case Candidate() if stage.scores and not _stale(state, number, stage):
            if decision := verdict(state, number, stage):
                yield Judge(number, decision)
        case Candidate() if _stale(state, number, stage):
            assert state.best
            yield Rebase(number, state.best.experiment)
        case Broken(candidate, crash):
            if number > 0 and candidate.repairs < state.session.repairs:
                yield Repair(number, candidate.repairs + 1)
            if number == 0 or candidate.repairs >= state.session.repairs or stopping(state):
                yield Judge(number, Failed(experiment=number, reason=f"{crash.failure}: {crash.message}"))
        case Decided(verdict=Kept(), promoted=False):
            yield Promote(number)
        case Decided() if _reflects(state, number, stage):
            yield Reflect(number)
        case Decided():
            yield Close(number, "no post-mortem is due")
        case _:
            pass


def _grants(state: State) -> list[Train]:
    """Free slots go to the candidates that wait: confirmations first, then the oldest."""
    taken = {stage.granted.slot for stage in state.open.values() if isinstance(stage, Training)}
    free = [slot for slot in range(state.session.slots) if slot not in taken]
    stop = stopping(state)
    waiting = [
        (not stage.scores, number, stage)
        for number, stage in state.open.items()
        if isinstance(stage, Candidate) and not _stale(state, number, stage) and not stop
        if not (stage.scores and verdict(state, number, stage))
        if number == 0 or state.best
    ]
    waiting.sort(key=lambda entry: entry[:2])
    return [
        Train(number, stage.runs + 1, slot, seed(state, number, stage.runs + 1))
        for slot, (_, number, stage) in zip(free, waiting, strict=False)
    ]


def _proposals(state: State) -> list[Propose]:
    """Enough proposals that every slot has a candidate ready behind the one it trains."""
    limits, slots = state.session.limits, state.session.slots
    baseline = state.open.get(0)
    if state.best is None and not (isinstance(baseline, Candidate | Training | Decided) and _runs(baseline) > 0):
        return []
    behind = sum(1 for n, stage in state.open.items() if n > 0 and isinstance(stage, Idea | Candidate | Broken))
    wanted = slots * AHEAD - behind
    if limits.experiments is not None:
        wanted = min(wanted, limits.experiments - state.next + 1)
    return [Propose(state.next, wanted, state.unanswered)] if wanted > 0 else []


def _runs(stage: Candidate | Training | Decided) -> int:
    return len((stage if isinstance(stage, Candidate) else stage.candidate).scores)


def _stale(state: State, number: int, candidate: Candidate) -> bool:
    """Made from a train.py that is no longer the best."""
    return number > 0 and state.best is not None and candidate.made.base != state.best.experiment


def _baseline_verdict(state: State, candidate: Candidate) -> Verdict | None:
    runs = len(candidate.scores)
    if runs < BASELINE_RUNS:
        return None
    deviation = sigma(replace(state, spread=state.spread.plus(candidate.scores)))
    return Kept(
        experiment=0,
        mean=candidate.mean,
        gain=0.0,
        error=deviation / sqrt(runs),
        sigma=deviation,
        mark=candidate.mean,
        reason=f"the baseline, over {runs} seeds",
    )


def _reflects(state: State, number: int, decided: Decided) -> bool:
    every = state.session.reflect_every
    kept = isinstance(decided.verdict, Kept)
    return number > 0 and every > 0 and (kept or state.unreflected + 1 >= every)
