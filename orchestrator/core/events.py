"""Everything that can happen in a session.

Events are facts in the past tense: small frozen values, appended and never edited. Long texts (sources, logs, prompts,
openings of conversations) are kept beside them in the session's store and are named here by their digest.
"""

import ast
import json
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Unpack

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass
from pydantic.json_schema import SkipJsonSchema

from orchestrator.core.task import Task
from prepare.constants import Value

VERSION = 2  # of the event format: a session of a newer version is refused; older ones always load

Digest = str  # name of a text in the session's store: the first 16 hexadecimal digits of its SHA-256
CommitHash = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
"""No other name is given to git, which would read it as an option, a ref or the lines of a stream: files are mailed."""

Family = Literal[
    "attention", "MLP", "optimizer", "schedule", "batch", "size", "init", "regularisation", "simplification", "other"
]
StoredFamily = Family | SkipJsonSchema[Literal["data order"]]
"""Older sessions also have the family data order. It is not offered any more: candidates may not touch the data."""
Direction = Literal["up", "down", "set"]


def _rename(old: str, new: str) -> Any:
    """Declare a field that can also be read under its name in older sessions."""
    return Field(validation_alias=AliasChoices(new, old))


class Frozen(BaseModel):
    """A frozen value; unknown fields are an error, so that a misspelled one never goes unnoticed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BaseEvent(Frozen):
    """An event: each class names its kind, which tells them apart on disk."""

    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str = "", **config: Unpack[ConfigDict]) -> None:
        """Make the kind a field, which holds nothing else: by it pydantic finds the class of an event."""
        super().__init_subclass__(**config)
        if kind:
            cls.__annotations__ = {**cls.__annotations__, "kind": Literal[kind]}
            cls.kind = kind


class Answer(Frozen):
    """A model's answer. The model sees the docstrings; `_limit` constrains its answer, not stored values."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def _limit(characters: int) -> Any:
    return Field(json_schema_extra={"maxLength": characters})


class Proposal(Answer):
    """One change to the script, and why to try it."""

    title: str = Field(min_length=3, max_length=120)
    """An imperative that a colleague understands at a glance; at most 90 characters."""
    hypothesis: str = _limit(300)
    """One falsifiable sentence."""
    rationale: str = _limit(1800)
    """Mechanism, theory, and this session's evidence by #number, in three to eight sentences."""
    expected_delta: float
    """Median guess of the change of the metric, with its own sign: of val_bpb, negative is better."""
    family: StoredFamily
    settings: dict[str, Value] = {}
    """Only where the change sets nothing but constants of the script: each by its name, with its new value."""
    direction: Direction | None = None
    """Only for a single constant: up or down, or set where its values have no order."""
    tests: int | None = None
    """Number of the judged experiment whose claim this one tests, if any."""
    instructions: str = _limit(2500)
    """What the mechanic is to change, with nothing left to decide; of mere settings, one sentence."""
    author: SkipJsonSchema[str] = "researcher"
    reverts: SkipJsonSchema[int | None] = None
    """Kept experiment whose change this one reverts; the orchestrator proposes it."""
    combines: SkipJsonSchema[tuple[int, ...]] = ()
    """Discarded experiments whose changes this one makes together; the orchestrator proposes it."""

    @property
    def is_idea(self) -> bool:
        """Whether it is somebody's new idea: no ablation, and no combination."""
        return self.reverts is None and not self.combines

    @model_validator(mode="before")
    @classmethod
    def _read_knob(cls, fields: Any) -> Any:
        """Read the `knob` of older sessions: a parameter ("A + B" for several), a direction and a value as text."""
        match fields:
            case {"knob": {"parameter": str(name), "value": str(text)}, **rest} if " + " in name and text[:1] == "{":
                try:
                    return rest | {"settings": json.loads(text)}
                except RecursionError as error:  # models may answer so, too
                    raise ValueError("knob: it is nested too deeply") from error
            case {"knob": {"parameter": str(name), "direction": way, "value": str(text)}, **rest}:
                return rest | {"settings": {name: parse_value(text)}, "direction": way}
            case {"knob": _, **rest}:
                return rest
            case _:
                return fields


def parse_value(text: str) -> Value:
    """Return the value that a literal of JSON or Python stands for; the text itself where it is not one."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return _VALUE.validate_python(read(text))
    return text


_VALUE: TypeAdapter[Value] = TypeAdapter(Value, config=ConfigDict(allow_inf_nan=False))


class Postmortem(Answer):
    """What an experiment taught."""

    implemented: Literal["yes", "partly", "no"] = "yes"
    """Whether the change is what the instructions asked for: no if something else was tested."""
    verdict: Literal["supported", "refuted", "inconclusive"]
    """On the hypothesis as it was written, by the measurements."""
    happened: str = _limit(700)
    """What happened, in numbers: two or three sentences."""
    why: str = _limit(900)
    """The likeliest mechanism, and what in the curves speaks for it."""
    lesson: str = _limit(250)
    """One sentence with its limits. It is quoted without the rest."""
    next: str = _limit(400)
    """The one experiment that would teach most now."""


class Notebook(Answer):
    """What is believed, what is open, and what is worth trying."""

    beliefs: tuple[str, ...]
    """What the measurements carry: one sentence each, with the #numbers of the experiments that show it, and the
    conditions under which they did."""
    questions: tuple[str, ...]
    """What is open, and would change what to try next."""
    ideas: tuple[str, ...]
    """The backlog, best first: a change, what it should bring, and why."""


class SessionLimits(Frozen):
    """What a session may spend; None means no limit."""

    hours: float = Field(le=1e6)  # which dates can be counted from
    experiments: int | None = None
    usd: float | None = None
    experiment_usd: float | None = None
    """Once models have cost as much for an experiment, no conversation about it begins or has a further turn."""


class SessionProfile(Frozen):
    """What `prepare` fixed for this machine, as far as the session needs it."""

    name: str
    budget_kind: Literal["time", "work"]
    budget: float  # seconds of training, or FLOPs' worth of training
    expected_seconds: float = Field(le=1e9)  # expected wall time of one whole run on this machine, in seconds
    data_hash: str
    seq_len: int = 0  # row length in tokens; 0 in sessions recorded before this field existed
    vocab_size: int = 0
    train_tokens: int = 0
    bytes_per_token: float = 0.0  # mean over the validation text: it relates nats per token to bits per byte
    sigma: float = Field(default_factory=lambda earlier: 0.0048 if earlier.get("name") == "cpu" else 0.0)
    """Standard deviation of val_bpb over seeds as measured before this session; 0 where it was not measured. The
    default is the one value that the cpu profile had before it was recorded."""
    baseline_runs: int = 2  # runs of the baseline before anything is compared with it, if σ is known


class KeepRule(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What a keep needs; by default what it needed before this was recorded."""

    bars: tuple[float, float] = (0.7, 0.7)
    """Probability of being better that the first keep needs, in a short night and in a long one."""
    slope: float = 3.0  # rise of the bar for each unit that the share of ideas that help is below the typical
    two_seeds: int | None = None  # runs from which a night is long: a keep then takes two seeds. None: never
    own_noise: bool = False  # whether the certificate takes noise from baseline's and best's own runs only
    stacks: bool = False  # whether promising candidates are stacked, and runs on earlier parents count
    ahead: bool = False
    """Whether, with several slots, a candidate does not wait with its own run for its rival's, nor for its turn."""
    risk: tuple[float, float] | None = None
    """Expected gain, in σ for a whole probability of not being better, that a keep needs, in a short night and a long
    one. The prior then takes gains to fade with the number of ideas. None: it forgets, and the bar alone decides."""
    width: float = 1.0  # factor of a certificate's interval that rests on one pair; of n pairs its n-th root
    own_dof: int = 3  # degrees of freedom of the pooled noise beside a side's own runs: σ differs by script
    combines: bool = False  # whether the last runs before the certificate try near-misses together
    prunes_by_gain: bool = False  # whether a run ends early where finishing it promises less than it costs
    chronological: bool = False
    """Whether, with several slots, the order of events tells what came first, as numbers did before, the optimizer is
    asked once at a time, and a change is tried and told only from the values that it was proposed from."""
    consistent: bool = False
    """Whether nothing seen elsewhere counts against a clear loss on the branch, a run counts once however often its
    candidate is moved, and what is called up or down is what a change's values tell, not its author."""
    as_declared: bool = False
    """Whether the ranges that comments declare are searched as they stand, the baseline decides whether others are
    guessed, and a researcher's values have the types of those before."""


class SessionSettings(Frozen):
    """What a session runs with, and a fork may change."""

    name: str
    limits: SessionLimits
    crew: str
    style: str
    repairs: int  # how often this crew may repair a crashed candidate
    reflect_every: int  # a post-mortem for every keep and every n-th other experiment; 0 means never
    consolidate_every: int = 0
    """The notebook is rewritten from the evidence after so many experiments, or sooner for a reason; 0 means never."""
    prompts: dict[str, Digest]
    isolated: bool = False  # whether its agents see no other session: in a trial, and after a fork
    certifies: bool = True  # whether its last runs measure the gain on fresh seeds
    measures_steps: bool = True  # whether agents may run a step beside the runs: not on a cluster
    asks_after_promotion: bool = False  # whether proposals wait until a keep is committed
    search: str = "coordinate"


class LossGap(Frozen):
    """How far behind its parent a run was, in loss at a share of the budget and in val_bpb at the end."""

    progress: float
    gap: float
    deficit: float


class EarlierResult(Frozen):
    """What an earlier session on the same data and budget found out about one change."""

    session: str
    experiment: int
    title: str
    family: StoredFamily
    changes: dict[str, Value] = {}  # constants that it set, with new values; empty for a change of structure
    before: dict[str, Value] = {}
    status: str  # how it ended: kept, reverted, discarded, pruned or crashed
    gain: float | None = None  # bits per byte, positive is better; None where it was not measured
    error: float = 0.0
    lesson: str = ""
    gaps: tuple[LossGap, ...] = ()  # of its first run: pruning is calibrated with them from the start


class Origin(Frozen):
    """The best train.py of another session, with which a night begins."""

    session: str
    experiment: int
    commit: CommitHash  # the commit of it, which the repository may not have
    source: Digest  # the baseline's train.py as it is trained here


class ExperimentEvent(BaseEvent):
    """An event that belongs to one experiment."""

    experiment: int


class RunEvent(ExperimentEvent):
    """An event that belongs to one run: one training of one candidate with one seed in one slot."""

    run: int  # counts the grants of this experiment from 1; results of an earlier life carry a lower number


class Started(SessionSettings, BaseEvent, kind="started"):
    version: int = VERSION
    slots: int = Field(default=1, le=100_000)  # they are listed
    seed: int  # seed that all other seeds are drawn from
    commit: CommitHash
    folder: str = ""  # of the script, in its repository; empty where it was not recorded
    profile: SessionProfile
    versions: dict[str, str]
    earlier: tuple[EarlierResult, ...] = ()  # what earlier sessions found, the latest first
    task: Task = Task()  # how runs are scored; the default is that of sessions before there was another
    rule: KeepRule = KeepRule()
    gpu: str = ""  # model of GPU that all runs use; empty where it was not recorded
    origin: Origin | None = None  # what it begins with in place of the train.py in the user's commit
    keeps_seed: bool = False  # whether runs have the seed that the script fixes: they tell no noise of seeds


class Resumed(BaseEvent, kind="resumed"):
    """The process was started again; the steps that were under way are due again."""


class Forked(SessionSettings, BaseEvent, kind="forked"):
    """A new session that shares the parent's events so far and continues separately."""

    parent: str  # `session@event` that it was forked at


class GuidanceChanged(BaseEvent, kind="guided"):
    text: str


class StopAsked(BaseEvent, kind="stop_asked"):
    """Nothing new is started from now on: Ctrl-C, or the time is up."""

    reason: str


class Paused(BaseEvent, kind="paused"):
    """Nothing new is started, but the night goes on: it waits for Continued, a stop or the deadline."""

    reason: str


class Continued(BaseEvent, kind="continued"):
    """The pause is over."""


class VetoAsked(ExperimentEvent, kind="veto_asked"):
    """The user does not want an experiment that is proposed, waits or trains."""


class Ended(BaseEvent, kind="ended"):
    reason: str


class BaselineCommitted(BaseEvent, kind="fitted"):
    """The baseline: train.py with its constants fitted to the profile."""

    commit: CommitHash
    source: Digest
    fingerprint: Digest


class Proposed(ExperimentEvent, kind="proposed"):
    proposal: Proposal
    shelved: tuple[Proposal, ...] = ()  # further drafts, for which there was no room: for the backlog


class Noted(BaseEvent, kind="noted"):
    """The researcher rewrote its notebook; that replaces the backlog, too."""

    notebook: Notebook | None  # None where a consolidation gave no usable answer: the notebook stays as it is
    reason: str = ""  # why a consolidation was due; empty where it was rewritten beside a proposal
    told: int | None = Field(default=None, ge=0)  # closed experiments that its author was told of; None: all by now
    drafts: tuple[str, ...] | None = None  # titles of the drafts that its author was told of; None: all by now


class Unanswered(BaseEvent, kind="unanswered"):
    """The researcher gave no usable answer; it is asked again a few times."""

    reason: str


class FellBack(BaseEvent, kind="fell_back"):
    """The researcher's rounds led to no run, time after time; from now on the optimizer proposes."""

    reason: str


class Refused(ExperimentEvent, kind="refused"):
    """A repeat, found before it cost any training."""

    reason: str


class Abandoned(ExperimentEvent, kind="abandoned"):
    """The proposal led to no runnable candidate."""

    reason: str
    outage: bool = False  # the model refused or was out: says nothing of the proposal, and does not count


class Vetoed(ExperimentEvent, kind="vetoed"):
    """What was under way for an experiment that the user does not want has ended, and so has the experiment."""

    reason: str = "the user vetoed it"


class Committed(ExperimentEvent, kind="committed"):
    """A candidate: an edited train.py, kept under a ref of its own."""

    commit: CommitHash
    parent: Annotated[int, _rename("base", "parent")]
    source: Digest
    fingerprint: Digest  # digest of the syntax tree: comments and layout do not count
    added: int
    removed: int
    how: Literal["implemented", "repaired", "rebased"] = "implemented"
    onto: Digest = ""  # source of a parent that was not kept yet; empty where it starts from the branch
    earlier: tuple[float, float, int] | None = None
    """Gain, error and runs of a rebased candidate on its parent before, in bits per byte; None without a run there."""
    summary: str = ""  # what the mechanic says it changed; empty if the loop set the constants
    deviations: str = ""


class PruningThreshold(Frozen):
    """Training loss above which a run is pruned at this share of its budget."""

    progress: float
    loss: float
    usual: float | None = None  # the incumbent's loss there; None where pruning is by significance
    scale: float = 0.0  # final difference that a unit of loss predicts, in bits per byte


def _read_rule(value: object) -> object:
    """Read the bound of older sessions: None audited every claim, 0 audited none."""
    return {None: "always", 0.0: "never"}.get(value, value) if isinstance(value, float | int | None) else value


class EvaluationPlan(Frozen):
    """How a run is evaluated, as the policy decided when it was granted."""

    audit: Annotated[Literal["always", "never"] | float, BeforeValidator(_read_rule), _rename("audited_below", "audit")]
    """Which claims are audited: all of them, none, or those below this val_bpb."""
    confirmed: bool  # whether what is audited is then scored on the held-out text, which no decision has used
    incumbent: Annotated[int, _rename("against", "incumbent")]
    """The experiment whose claims guide the audit: it looks first where a candidate's claims beat these."""
    baseline_error: Annotated[
        Literal["unmeasured"] | float,
        BeforeValidator(lambda value: "unmeasured" if value is None else value),
        _rename("honest", "baseline_error"),
    ] = 0.0
    """Largest error of the baseline's claims, in nats; its own audit measures it."""
    startup_cpu: Annotated[float | None, _rename("startup", "startup_cpu")] = None
    """CPU seconds that the baseline takes until its first batch; None if they are not known yet, as below."""
    startup_seconds: Annotated[float | None, _rename("starting", "startup_seconds")] = None
    uncounted: float | None = None  # seconds from its first batch on in which it compiles and counts nothing
    train_cpu: float | None = None
    rest_cpu: float | None = None  # CPU seconds that it uses once it has handed its model over
    evaluation: float | None = None  # seconds that an evaluation of it takes
    evaluation_cpu: float | None = None
    pruning_thresholds: Annotated[tuple[PruningThreshold, ...], _rename("bounds", "pruning_thresholds")] = ()
    control_run: Annotated[bool, _rename("reprieved", "control_run")] = False
    """Let the run finish even where it would be pruned, to measure how often pruning is wrong."""
    certifies: bool = False  # whether the run serves the certificate: no decision may use its score

    def needs_audit(self, val_bpb: float) -> bool:
        """Return whether a claim of that val_bpb is audited."""
        return self.audit == "always" or (self.audit != "never" and val_bpb < self.audit)


class Granted(RunEvent, kind="granted"):
    """A run may start in a slot, with a seed."""

    slot: int
    seed: int
    plan: Annotated[EvaluationPlan | None, _rename("terms", "plan")] = None
    """None in sessions recorded before plans existed."""


@dataclass(frozen=True, slots=True, config={"extra": "forbid", "allow_inf_nan": False})
class Point:
    """One point of a loss curve. There are so many that they are no models, which take five times the memory."""

    seconds: float
    progress: float  # share of the budget used up, 0 to 1
    loss: float


class RunMetrics(Frozen):
    """Measurements of a run, from outside and from its own summary; 0 where unknown."""

    startup_cpu: Annotated[float, _rename("startup", "startup_cpu")] = 0.0
    """CPU seconds until the first batch."""
    startup_seconds: Annotated[float, _rename("starting", "startup_seconds")] = 0.0
    uncounted: float = 0.0  # seconds from there on in which its progress lines count nothing yet
    train_seconds: float = 0.0
    train_cpu: float = 0.0
    rest_cpu: float = 0.0  # CPU seconds once it had handed its model over, or that were not seen until then
    total_seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    parameters: int = 0
    memory_mb: float = 0.0
    mfu: float = 0.0  # percent of the GPU's peak FLOPs, by the script's own formula


class Audit(Frozen):
    """What a second, blind process found about a run's claims."""

    claimed: float  # val_bpb before the correction
    error: float  # standard error of the correction, in bits per byte
    worst: float  # largest amount by which a claim beat the blind prediction, in nats
    looks: int
    seconds: float
    evaluation: float  # seconds that the claims took
    evaluation_cpu: float = 0.0


Telemetry = dict[str, tuple[float | None, ...]]
"""What a script reported of itself, at each tenth of its budget, by names such as gradient/wte. It may be invented, and
decides nothing. Only `position` is measured: bits per byte at positions 0, 1, 2 to 3, 4 to 7, … of a row."""


class RunResult(RunEvent):
    """The fields common to all runs that ended, except aborted ones."""

    metrics: Annotated[RunMetrics, _rename("measures", "metrics")]
    curve: tuple[Point, ...]
    log: Digest
    tier: str = "none"
    telemetry: Telemetry = {}


class Scored(RunResult, kind="scored"):
    val_bpb: float  # the score, lower is better: val_bpb, or what the task's metric makes of its value
    seed: int = Field(default=-1, exclude=True)  # the state adds it from the grant, which alone is stored
    reported: dict[str, float] = {}
    audit: Audit | None = None
    confirmed: float | None = None  # val_bpb on the held-out text; None where it was not measured
    would_prune_at: Annotated[float | None, _rename("condemned", "would_prune_at")] = None
    """Share of the budget at which a control run would have been pruned."""


FailureKind = Literal[
    "out of device memory",
    "out of host memory",
    "NaN",
    "import",
    "syntax",
    "disk full",
    "timeout",
    "hang",
    "disqualified",
    "other",
]
"""Why a run failed. Disqualified: it finished, but its score cannot be trusted."""


class Crashed(RunResult, kind="crashed"):
    """A run failed through the candidate's own fault: a failed experiment is a value."""

    failure: FailureKind
    message: str  # the last line that says why, a few hundred characters at most


class Pruned(RunResult, kind="pruned"):
    """A run was ended early because its loss was too far behind; that is the experiment's verdict, too."""

    reason: Annotated[str, _rename("message", "reason")]
    deficit: float | None = None  # in bits per byte, as its curve predicts it; None where it was significantly behind


class Aborted(RunEvent, kind="aborted"):
    """A run was lost through the machine's fault, not the candidate's; it does not count."""

    reason: str
    quarantined: bool = False  # the slot is sick: nothing is started there until the session is resumed


class SeedLuck(Frozen):
    """Estimate of the incumbent's luck at one seed, in σ: positive if it made the val_bpb higher."""

    seed: int
    mean: float = 0.0
    variance: float = 1.0


class Evidence(ExperimentEvent):
    """What a verdict on a scored candidate rests on. Differences are incumbent minus candidate: positive is better."""

    mean: float  # mean score of the candidate's runs
    gain: float  # estimated difference from the incumbent, in units of the metric
    error: float
    sigma: float  # standard deviation of one run's score
    differences: tuple[float, ...] = ()  # at equal seeds, in the same units; empty if none were paired
    same_shape: bool = False  # whether parameters and data order equal the incumbent's: luck is then shared
    probability: float | None = None
    expected: float | None = None  # expected gain in bits per byte: the mean of the posterior
    luck: tuple[SeedLuck, ...] = ()  # luck of the incumbent after this verdict
    reason: str


class Kept(Evidence, kind="kept"):
    """The candidate replaces the incumbent."""

    score_to_beat: Annotated[float, _rename("mark", "score_to_beat")]


class Discarded(Evidence, kind="discarded"):
    """The candidate is not likely enough to be better than the incumbent."""


class Failed(ExperimentEvent, kind="failed"):
    """The experiment was judged without a score."""

    reason: str
    failure: Annotated[FailureKind, BeforeValidator(lambda kind: "other" if kind == "hopeless" else kind)] = "other"


class Certified(ExperimentEvent, kind="certified"):
    """The night's gain, baseline against best, was measured on fresh seeds that no decision has used."""

    gain: float  # baseline minus best, in bits per byte
    low: float
    high: float  # bounds of the 90 % interval
    pairs: int
    heldout: bool


class Promoted(ExperimentEvent, kind="promoted"):
    """The research branch was advanced to the kept candidate."""

    commit: CommitHash


class Reflected(ExperimentEvent, kind="reflected"):
    """The reflector wrote a post-mortem, which closes the experiment."""

    postmortem: Postmortem


class ReflectionSkipped(ExperimentEvent, kind="closed"):
    """The experiment was closed without a post-mortem."""

    reason: str
    failed: bool = False  # the reflector was asked and gave no usable answer


class Waiting(BaseEvent, kind="waiting"):
    """A model's server asked to wait; training continues meanwhile."""

    until: float  # seconds since the epoch
    reason: str


class Tokens(Frozen):
    """Tokens of one request, as the provider counts them."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0


class ConversationOpened(ExperimentEvent, kind="opened"):
    agent: str
    model: str
    system: Digest
    opening: Digest
    tools: Digest = ""  # schemas of its tools, each a line of JSON; from here on not recorded at first
    effort: str = ""
    limits: dict[str, int] = {}  # turns, tokens of a reply and of all, as the prompt's front matter has them


class Reserved(ExperimentEvent, kind="reserved"):
    """What a request may cost at most, where dollars are limited; it is spent if it gets no reply."""

    agent: str
    usd: float


class ModelReplied(ExperimentEvent, kind="replied"):
    """A model's whole answer, block by block as it came."""

    agent: str
    request: Digest
    told: tuple[str, ...] = ()  # what it was told since its last reply, beside results of tools
    message: dict[str, Any]
    tokens: Tokens
    usd: float | None


class ModelReplaced(ExperimentEvent, kind="replaced"):
    """An agent's model refused or was out, and another goes on with the conversation."""

    reason: str


class ToolUsed(BaseEvent, kind="used"):
    tool: str
    call: str
    result: str
    is_error: bool = False


SessionEvent = Started | Resumed | Forked | GuidanceChanged | StopAsked | Ended | BaselineCommitted | Certified
UserEvent = Paused | Continued | VetoAsked
ProposalEvent = Proposed | Noted | Unanswered | FellBack | Refused | Abandoned | Vetoed | Committed | Granted
Outcome = Scored | Crashed | Pruned | Aborted
Verdict = Kept | Discarded | Failed | Pruned
ClosingEvent = Promoted | Reflected | ReflectionSkipped
AgentEvent = Waiting | ConversationOpened | Reserved | ModelReplied | ModelReplaced | ToolUsed
AnyEvent = SessionEvent | UserEvent | ProposalEvent | Outcome | Verdict | ClosingEvent | AgentEvent
Event = Annotated[AnyEvent, Field(discriminator="kind")]


class Record(Frozen):
    """An event with its place and time."""

    seq: int
    at: float = Field(ge=0, le=1e11)  # seconds since the epoch, of which a date can be made
    task_id: str  # the step that wrote it; empty for external events: the user, the clock, a restart
    event: Event


_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(body: str | bytes) -> Event:
    """Return the event of a stored record; pruned runs used to be crashes, "hopeless". Raises ValidationError."""
    fields = json.loads(body)
    if fields.get("kind") == "crashed" and fields.get("failure") == "hopeless":
        fields = {name: value for name, value in fields.items() if name != "failure"} | {"kind": "pruned"}
    return _EVENT.validate_python(fields)
