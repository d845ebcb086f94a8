"""What is due, and what is worth keeping: pure functions of the state, and every threshold with its reason."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import log2, sqrt
from statistics import fmean
from typing import Literal

from orchestrator import forecast
from orchestrator.events import Bound, Committed, Discarded, Failed, Kept, Knob, Proposal, Scored, Terms, Verdict
from orchestrator.state import (
    Best,
    Broken,
    Candidate,
    Decided,
    Finding,
    Idea,
    Remeasuring,
    Spread,
    Stage,
    State,
    Training,
    proposal_of,
)

BASELINE_RUNS = 3
"""The fewest that give a spread at all; confirmations of candidates sharpen it later."""
PRIOR_FREEDOM = 8
"""What a profile's measured σ (docs/benchmarks.md) counts for: half of the runs that went into it, since machines
differ. Profiles without a measurement start from nothing."""
FUTILE = (0.8, 1.4, 1.8, 2.1, 2.4, 2.6, 2.8)
"""A candidate is given up when its gain is below this many standard errors after its 1st, 2nd, … seed. Tuned by
simulation: a change that does nothing costs 1.2 runs, and a true gain of 3σ is given up in 3 of 100."""
MAX_RUNS = len(FUTILE) + 1
MIN_RUNS = 2
"""Nothing is kept on one seed: the first run is the one that luck has chosen."""
SURE = {
    **dict(enumerate((1592.0, 49.98, 17.6, 10.92, 8.36, 7.07, 6.31, 5.81, 5.46, 5.2), 1)),
    12: 4.85,
    15: 4.53,
    20: 4.24,
    30: 3.98,
    60: 3.75,
    120: 3.64,
    1000: 3.55,
}
"""Standard errors of gain that a keep needs, by the degrees of freedom of σ: Student's t at 1 in 5,000, one-sided.
The less is known of the noise, the more is asked; a night of 200 no-ops then keeps none."""
SIGMA_FLOOR = 1e-4
"""The H100's own jitter is a few of these; a smaller σ means that seeds were ignored."""
IMPLAUSIBLE = 0.1
"""Share of val_bpb that no honest change gains at once: most that seemed to saw what they were to predict."""
IMPLAUSIBLE_RUNS = 3
"""Seeds that such a jump needs; each is audited at other places. The verdict then asks the user to have a look."""
SIMPLER_LINES = 3
"""Within the noise, a candidate shorter by this many lines may be kept: less code is a result, too."""
SIMPLER_RUNS = 3
"""Seeds that such a keep needs: it claims that nothing was lost."""
MEMORY_SLACK = 1.1
"""Times the incumbent's memory that are free: less is within what allocators do."""
MEMORY_PRICE = 1.0
"""σ of gain that each doubling of memory must pay for before the rest counts: a soft limit, as upstream asks for."""
MOST_GROWTH = 16.0
"""Times the memory that are believed: on a GPU it is what a script printed."""
CHECKPOINTS = (0.4, 0.6, 0.8)
"""Shares of the budget at which a curve is compared: before that, warm-up and schedules say more than the idea."""
CALIBRATION = 10
"""Finished candidates of this session from which its curves foretell anything; until then no run is ended early."""
BORDER = 10.0
"""σ within which a candidate must have ended to take part: who is far off says nothing about where the border is."""
REPRIEVE = 5
"""Every so many-th candidate runs to its end even if it is hopeless, to show how often that is wrong."""
FALSE_ALARMS = 0.05
"""Share of reprieved runs that may prove as good as the best before early ends are given up for the night."""
STALL = 8
"""Experiments without a keep after which the researcher is asked for another family."""
NEAR = 1.0
"""Standard errors of gain from which a discarded candidate counts as a near-miss, worth combining with another."""
CENTAUR = 3
"""In a centaur crew every third proposal is the optimizer's own; a larger share did worse in published trials."""
AHEAD = 1
"""Candidates ready behind each one that trains: enough that no slot waits, few enough that none goes stale."""
UNANSWERED = 3
"""Rounds in a row without an answer from the researcher after which the night ends."""
ABORTED = 3
"""Runs in a row lost to the machine after which it is the machine that needs attention."""
FINISH = 1.15
"""Nothing is started with less time left than its expected length times this."""
REPEAT_EXPIRY = 20
"""A knob turned the same way from the same base may be turned so again after this many other experiments."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Commit the baseline: train.py with its constants fitted to the profile."""

    lane: str = "fit"
    """A name that is used once in a life."""
    places: tuple[str, ...] = ("fit",)
    """Where only one step can be at a time."""


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask the researcher for up to `count` proposals, numbered from `first`."""

    first: int
    count: int
    attempt: int
    places: tuple[str, ...] = ("propose",)

    @property
    def lane(self) -> str:
        return f"propose {self.first}" + f".{self.attempt}" * (self.attempt > 0)


@dataclass(frozen=True, slots=True)
class _OnExperiment:
    experiment: int

    @property
    def lane(self) -> str:
        return f"{type(self).__name__.lower()} {self.experiment}"

    @property
    def places(self) -> tuple[str, ...]:
        return (f"experiment {self.experiment}",)


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

    @property
    def places(self) -> tuple[str, ...]:
        return (f"experiment {self.experiment}", f"slot {self.slot}")


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
    places: tuple[str, ...] = ("stop",)


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
    elif not any(isinstance(step, Judge) for step in steps):
        # A verdict may change the best, too: no slot is given to what would be stale a moment later.
        steps += _grants(state)
    reason = stopping(state)
    if not reason:
        return (*steps, *_proposals(state))
    steps = [step for step in steps if not isinstance(step, Implement | Rebase | Repair) and not _put_off(state, step)]
    busy = any(isinstance(stage, Training | Remeasuring) for stage in state.open.values())
    return tuple(steps) if steps or busy else (Stop(reason),)


def _put_off(state: State, step: Step) -> bool:
    """A post-mortem whose model asked to come back after the night."""
    return isinstance(step, Reflect) and step.lane in state.waiting and state.waiting[step.lane].until > state.deadline


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
            return f"the researcher gave no usable answer {UNANSWERED} times in a row: {state.silence}"
        case _ if state.aborted >= ABORTED:
            return f"the machine failed {ABORTED} times in a row"
        case _:
            return ""


def terms(state: State, experiment: int, run: int) -> Terms:
    """How a run is to be examined.

    Scores below the mark are audited: they would help towards a keep, or make one look better than it is. The run that
    can decide on a keep, never the first, is examined on the confirmation text, too. Of the baseline, which is the
    user's own code, the first run is: as the reference for what follows.
    """
    best, stage = state.best, state.open.get(experiment)
    fresh = isinstance(stage, Candidate) and not stage.scores
    if best is None or experiment == 0:
        return Terms(audited_below=None if fresh else 0.0, confirmed=fresh, against=0, honest=None)
    return Terms(
        audited_below=best.mark,
        confirmed=not fresh,
        against=best.experiment,
        honest=_honest(state, best),
        bounds=_bounds(state, best) if fresh else (),
        reprieved=fresh and seed(state, experiment, run) % REPRIEVE == 0,
    )


def _honest(state: State, best: Best) -> float:
    """Nats by which honest claims are off at most, as the audit of the user's own code has shown."""
    closed = [score for finding in state.findings if finding.experiment == 0 for score in finding.scores]
    runs = best.scores if best.experiment == 0 else closed
    return max((abs(score.audit.worst) for score in runs if score.audit), default=0.0)


def _bounds(state: State, best: Best) -> tuple[Bound, ...]:
    """Where a first run is hopeless: from there on, none of this session's would have come back to the best."""
    reprieved, wrong = alarms(state)
    if wrong > FALSE_ALARMS * reprieved:
        return ()
    bounds = ((at, _bound(state, best, at)) for at in CHECKPOINTS)
    return tuple(Bound(progress=at, loss=loss) for at, loss in bounds if loss is not None)


def _bound(state: State, best: Best, progress: float) -> float | None:
    """The loss from which a run is hopeless at that share of its budget; None while that is not known."""
    near = BORDER * sigma(noise(state))
    pairs = [(gap, final) for gap, final in _gaps(state, best, progress) if abs(final) <= near]
    line = forecast.fit(pairs) if len(pairs) >= CALIBRATION else None
    usual = forecast.level_of(best.scores, progress)
    if line is None or usual is None or (border := line.border(sure(line.freedom))) is None:
        return None
    return usual + max([0.0, border, *(gap for gap, final in pairs if final <= 0)])


def _gaps(state: State, best: Best, progress: float) -> Iterator[tuple[float, float]]:
    """Of each finished candidate: how far its first run was behind its base on the way, and how far in the end."""
    runs = {f.experiment: f.scores for f in state.findings} | {best.experiment: best.scores}
    for finding in state.findings:
        if finding.experiment == 0 or not finding.made or (final := _behind(finding)) is None:
            continue
        base = forecast.level_of(runs.get(finding.made.base, ()), progress)
        loss = forecast.level(finding.scores[0].curve, progress)
        if base is not None and loss is not None:
            yield loss - base, final


def _behind(finding: Finding) -> float | None:
    """How far the first run ended behind the best of its time."""
    match finding.verdict:
        case Kept() | Discarded() as verdict if finding.scores:
            return finding.scores[0].val_bpb - (verdict.mean + verdict.gain)
        case _:
            return None


def alarms(state: State) -> tuple[int, int]:
    """Runs that were hopeless but reprieved, and how many of them ended as good as the best."""
    spared = [_behind(f) for f in state.findings if f.scores and f.scores[0].condemned is not None]
    ends = [end for end in spared if end is not None]
    return len(ends), sum(end <= 0 for end in ends)


def expected_seconds(state: State) -> float:
    """Wall seconds that the next run will probably take: the longest of the last few."""
    return max(state.run_seconds, default=state.session.profile.expected_seconds)


def seed(state: State, experiment: int, run: int) -> int:
    """A seed that nobody has chosen: drawn from the session's, the experiment's number and the run's."""
    digest = hashlib.sha256(f"{state.session.seed}/{experiment}/{run}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def noise(state: State, scores: tuple[Scored, ...] = ()) -> Spread:
    """All that is known of the spread of val_bpb over seeds, with these further runs of one candidate."""
    spread, prior = state.spread.plus(scores), state.session.profile.sigma
    freedom = PRIOR_FREEDOM if prior else 0
    return Spread(spread.squares + freedom * prior**2, spread.freedom + freedom)


def sigma(spread: Spread) -> float:
    """Standard deviation of one run's val_bpb. Never 0: runs that agree to the bit did not differ by their seeds."""
    return max(sqrt(spread.squares / max(spread.freedom, 1)), SIGMA_FLOOR)


def sure(freedom: int) -> float:
    """The standard errors that a keep needs when σ has so many degrees of freedom."""
    return SURE[max((known for known in SURE if known <= freedom), default=1)]


def decide(state: State, number: int, candidate: Candidate) -> Verdict | Literal["again", "remeasure"]:
    """A verdict; or what must run first: the candidate with another seed, or the incumbent."""
    best, runs = state.best, len(candidate.scores)
    spread = noise(state, candidate.scores)
    deviation, needed = sigma(spread), sure(spread.freedom)
    if best is None:
        return _established(number, candidate, deviation) if runs >= BASELINE_RUNS else "again"
    error = deviation * sqrt(1 / runs + 1 / len(best.scores))
    gain = best.mark - candidate.mean
    numbers = _Numbers(number, candidate.mean, gain, error, deviation)
    growth = _growth(best, candidate)
    worth = gain - MEMORY_PRICE * deviation * log2(growth)
    ratio = f"{worth / error:+.1f} standard errors over {runs} seed{'s' * (runs > 1)}"
    if growth > 1:
        ratio += f" ({gain / error:+.1f}, less the price of {growth:.2g} times the memory)"
    simpler = candidate.made.removed - candidate.made.added >= SIMPLER_LINES and worth > -error / 2
    if runs < MAX_RUNS and worth < FUTILE[runs - 1] * error and not simpler:
        word = "worse than" if worth < -2 * error else "no better than" if worth < error else "too little better than"
        return numbers.discarded(f"{word} the best: {ratio}")
    transfers = _transfers(best, candidate, gain, error)
    jump = gain > IMPLAUSIBLE * best.mark
    if runs >= (IMPLAUSIBLE_RUNS if jump else MIN_RUNS) and worth >= needed * error and transfers:
        look = f"; a jump of {gain / best.mark:.0%} is hard to believe, so have a look at it" * jump
        return numbers.kept(best.mark, f"better beyond the noise: {ratio}, and a keep needs {needed:.1f}{look}")
    if runs >= SIMPLER_RUNS and simpler and transfers:
        return numbers.kept(best.mark, f"as good as the best with fewer lines: {ratio}")
    if transfers is False:
        return numbers.discarded(f"better only on text that decisions have used, not on fresh text: {ratio}")
    if runs >= MAX_RUNS:
        why = "not examined on fresh text" if worth >= needed * error else "not beyond the noise"
        return numbers.discarded(f"{why}: {ratio}, and a keep needs {needed:.1f}")
    if stopping(state):
        return numbers.discarded(f"promising, but the night ended before it could be confirmed: {ratio}")
    # An incumbent that failed twice to run again is known as well as it will ever be.
    known = best.runs if best.runs - len(best.scores) > 1 else len(best.scores)
    return "remeasure" if runs >= MIN_RUNS and known < runs else "again"


def _growth(best: Best, candidate: Candidate) -> float:
    """Times the incumbent's memory; 1 where it is not more, or not known."""
    before, now = (fmean(score.measures.memory_mb for score in runs) for runs in (best.scores, candidate.scores))
    return min(now / before, MOST_GROWTH) if before > 0 and now > MEMORY_SLACK * before else 1.0


def _transfers(best: Best, candidate: Candidate, gain: float, error: float) -> bool | None:
    """Whether at least half of the gain, but for noise, is there on the confirmation text; None while that is open.

    A model's two scores share its seed's luck, so one run of each side shows well how much is lost from text to text.
    """
    before, now = _shift(best.scores), _shift(candidate.scores)
    if before is None:
        return True  # there is no such text, or was none
    return None if now is None else gain - (now - before) >= (gain - error) / 2


def _shift(scores: tuple[Scored, ...]) -> float | None:
    """How much higher val_bpb is on the confirmation text."""
    shifts = [score.confirmed - score.val_bpb for score in scores if score.confirmed is not None]
    return fmean(shifts) if shifts else None


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What every verdict on a scored candidate states."""

    experiment: int
    mean: float
    gain: float
    error: float
    sigma: float

    def kept(self, mark: float, reason: str) -> Kept:
        return Kept(**asdict(self), mark=min(mark, self.mean), reason=reason)

    def discarded(self, reason: str) -> Discarded:
        return Discarded(**asdict(self), reason=reason)


def _established(number: int, candidate: Candidate, deviation: float) -> Kept:
    runs = len(candidate.scores)
    numbers = _Numbers(number, candidate.mean, 0.0, deviation / sqrt(runs), deviation)
    return numbers.kept(candidate.mean, f"the baseline, over {runs} seeds")


def repeats(state: State, number: int, proposal: Proposal) -> str:
    """Why this was tried already, or is under way; empty if it is new."""
    knob = proposal.knob
    if knob is None:
        return ""
    if "seed" in knob.parameter.lower():
        return "another seed is not an improvement: the orchestrator assigns the seeds"
    best = state.best.experiment if state.best else 0
    tried = [(f.experiment, f.proposal) for f in state.findings[-REPEAT_EXPIRY:] if _judged_against(f, best)]
    under_way = [(n, proposal_of(stage)) for n, stage in state.open.items() if 0 < n < number]
    for experiment, earlier in (*tried, *under_way):
        if earlier.knob and _same_turn(earlier.knob, knob, proposal.author):
            turn = f"{knob.parameter} {knob.direction} {knob.value}".strip()
            return f"{turn} repeats experiment {experiment}: {earlier.title}"
    return ""


def _judged_against(finding: Finding, best: int) -> bool:
    return isinstance(finding.verdict, Discarded) and finding.against == best


def _same_turn(earlier: Knob, now: Knob, author: str) -> bool:
    """The same value; or, unless it comes from an optimizer, which searches along a knob on purpose, the same way."""
    same_way = (earlier.parameter, earlier.direction) == (now.parameter, now.direction)
    return earlier == now or (same_way and now.direction != "set" and author != "optimizer")


def duplicate(state: State, number: int, fingerprint: str) -> str:
    """Why this source need not be trained; empty if it must."""
    made = {f.experiment: f.made for f in state.findings if f.made}
    made |= {n: m for n, stage in state.open.items() if n < number and (m := _made(stage))}
    same = [n for n, committed in made.items() if committed.fingerprint == fingerprint and n != number]
    if state.base.experiment in same:
        return "it changes nothing but comments, layout or a seed"
    return f"it is the same code as experiment {same[0]}" if same else ""


def _made(stage: Stage) -> Committed | None:
    match stage:
        case Candidate(made=made) | Training(Candidate(made=made)) | Broken(Candidate(made=made)):
            return made
        case Decided(Candidate(made=made)):
            return made
        case Idea() | Remeasuring():
            return None


def _next(state: State, number: int, stage: Stage) -> Iterator[Step]:
    """What an experiment needs next; runs are granted apart, since slots are scarce."""
    match stage:
        case Idea(proposal):
            reason = repeats(state, number, proposal)
            yield Refuse(number, reason) if reason else Implement(number)
        case Candidate() if stage.scores and not _stale(state, number, stage):
            if not isinstance(decision := decide(state, number, stage), str):
                yield Judge(number, decision)
        case Candidate() if _stale(state, number, stage):
            assert state.best
            yield Rebase(number, state.best.experiment)
        case Broken(candidate, crash):
            # Who repaired a disqualified candidate would learn from the auditor how to pass.
            final = number == 0 or crash.failure in {"disqualified", "hopeless"}
            repairs = 0 if final else state.session.repairs
            if candidate.repairs < repairs:
                yield Repair(number, candidate.repairs + 1)
            if candidate.repairs >= repairs or stopping(state):
                kind = "" if crash.failure == "hopeless" else f"{crash.failure}: "
                yield Judge(number, Failed(experiment=number, reason=kind + crash.message, failure=crash.failure))
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
    taken = {stage.granted.slot for stage in state.open.values() if isinstance(stage, Training | Remeasuring)}
    free = [slot for slot in range(state.session.slots) if slot not in taken]
    wanted = sorted(_wanted(state)) if free and not stopping(state) else []
    numbers = list(dict.fromkeys((number, run) for _, _, number, run in wanted))
    return [
        Train(number, run, slot, seed(state, number, run)) for slot, (number, run) in zip(free, numbers, strict=False)
    ]


def _wanted(state: State) -> Iterator[tuple[bool, int, int, int]]:
    """Runs that somebody waits for: (not a confirmation, for which experiment, whose run, which run of it)."""
    for number, stage in state.open.items():
        if not isinstance(stage, Candidate) or _stale(state, number, stage) or (number > 0 and not state.best):
            continue
        need = decide(state, number, stage) if stage.scores else "again"
        if need == "again":
            yield (not stage.scores, number, number, stage.runs + 1)
        elif need == "remeasure" and state.best and state.best.experiment not in state.open:
            yield (False, number, state.best.experiment, state.best.runs + 1)


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


def _reflects(state: State, number: int, decided: Decided) -> bool:
    every = state.session.reflect_every
    kept = isinstance(decided.verdict, Kept)
    return number > 0 and every > 0 and (kept or state.unreflected + 1 >= every)
