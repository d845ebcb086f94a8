"""Everything that can happen in a session.

Events are facts in the past tense: small frozen values, appended and never edited. Long texts (sources, logs,
prompts, conversations' openings) stand beside them in the session's store and are named here by their digest.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

VERSION = 1
"""Of the events' format. A session written by a newer version is refused; older ones always load."""

Digest = str
"""Names a text in the session's store: the first 16 hexadecimal digits of its SHA-256."""

Family = Literal[
    "attention",
    "MLP",
    "optimizer",
    "schedule",
    "batch",
    "size",
    "init",
    "regularisation",
    "data order",
    "simplification",
    "other",
]


def _renamed(old: str, new: str) -> Any:
    """Read a field also under the name that older sessions gave it."""
    return Field(validation_alias=AliasChoices(new, old))


class Frozen(BaseModel):
    """A frozen value; unknown fields are an error, so that a typing slip never loses anything."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Knob(Frozen):
    """The constant that a proposal turns, where it turns just one."""

    parameter: str
    direction: Literal["up", "down", "set"]
    value: str = ""


class Proposal(Frozen):
    """What to try and why, written before anything is edited."""

    title: str = Field(min_length=3, max_length=120)
    hypothesis: str
    """One falsifiable sentence."""
    rationale: str
    """Why it should hold, from the theory and from this session's own findings."""
    expected_delta: float
    """Expected change of val_bpb; negative is better."""
    family: Family
    knob: Knob | None = None
    instructions: str
    """What the mechanic is to change, precisely enough that there is nothing left to decide."""
    author: str = "researcher"


class Postmortem(Frozen):
    """What an experiment taught."""

    verdict: Literal["supported", "refuted", "inconclusive"]
    happened: str
    why: str
    lesson: str
    next: str


class SessionLimits(Frozen):
    """What a session may spend; None is no limit."""

    hours: float
    experiments: int | None = None
    usd: float | None = None


class SessionProfile(Frozen):
    """What `prepare` fixed for this machine, as far as the session cares."""

    name: str
    budget_kind: Literal["time", "work"]
    budget: float
    """Seconds of training, or FLOPs' worth of training."""
    expected_seconds: float
    """How long one whole run is expected to take on this machine."""
    data_hash: str
    seq_len: int = 0
    """Tokens of a row; 0 in sessions of before this was told."""
    vocab_size: int = 0
    sigma: float = 0.0
    """What the spread of val_bpb over seeds was measured to be, before this session; 0 where it was not."""

    @model_validator(mode="before")
    @classmethod
    def _known_before(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Sessions of before this was recorded had one value for the cpu profile."""
        return {"sigma": 0.0048 if fields.get("name") == "cpu" else 0.0, **fields}


class Started(Frozen):
    kind: Literal["started"] = "started"
    version: int = VERSION
    name: str
    limits: SessionLimits
    slots: int = 1
    crew: str
    style: str
    seed: int
    """All other seeds are drawn from it."""
    repairs: int
    """How often a crashed candidate may be repaired by this crew."""
    reflect_every: int
    """A post-mortem for every keep and every n-th other experiment; 0 is never."""
    commit: str
    """The user's commit that the session starts from."""
    profile: SessionProfile
    prompts: dict[str, Digest]
    versions: dict[str, str]


class Resumed(Frozen):
    """The process came back; whatever was under way is due again."""

    kind: Literal["resumed"] = "resumed"


class Forked(Frozen):
    """A new session that shares what came before, and goes on in its own way."""

    kind: Literal["forked"] = "forked"
    parent: str
    """`session@event` that it was forked at."""
    name: str
    limits: SessionLimits
    crew: str
    style: str
    repairs: int
    reflect_every: int
    prompts: dict[str, Digest]


class GuidanceChanged(Frozen):
    """The user wrote something else into guidance.md."""

    kind: Literal["guided"] = "guided"
    text: str


class StopAsked(Frozen):
    """Nothing new is to be started: Ctrl-C, or the time is up."""

    kind: Literal["stop_asked"] = "stop_asked"
    reason: str


class Ended(Frozen):
    kind: Literal["ended"] = "ended"
    reason: str


class BaselineCommitted(Frozen):
    """The baseline: train.py with its constants fitted to the profile."""

    kind: Literal["fitted"] = "fitted"
    commit: str
    source: Digest
    fingerprint: Digest


class Proposed(Frozen):
    kind: Literal["proposed"] = "proposed"
    experiment: int
    proposal: Proposal


class Unanswered(Frozen):
    """The researcher gave no usable answer; it is asked again, a few times."""

    kind: Literal["unanswered"] = "unanswered"
    reason: str


class Refused(Frozen):
    """A repeat, found before it cost any training."""

    kind: Literal["refused"] = "refused"
    experiment: int
    reason: str


class Abandoned(Frozen):
    """No runnable candidate came of the proposal."""

    kind: Literal["abandoned"] = "abandoned"
    experiment: int
    reason: str


class Committed(Frozen):
    """A candidate: an edited train.py, kept under a ref of its own."""

    kind: Literal["committed"] = "committed"
    experiment: int
    commit: str
    parent: Annotated[int, _renamed("base", "parent")]
    """The experiment whose train.py was edited."""
    source: Digest
    fingerprint: Digest
    """Of the syntax tree: comments and layout do not count."""
    added: int
    removed: int
    how: Literal["implemented", "repaired", "rebased"] = "implemented"


class PruningThreshold(Frozen):
    """A run with more loss than this at this share of its budget is hopeless."""

    progress: float
    loss: float


class EvaluationPlan(Frozen):
    """How a run is examined, as the policy decided when it was granted."""

    audited_below: float | None
    """Claims below it are audited; None audits every claim."""
    confirmed: bool
    """Whether what is audited is then examined on text that no decision has used."""
    incumbent: Annotated[int, _renamed("against", "incumbent")]
    """The incumbent: where a candidate's claims beat its claims, lies would pay."""
    baseline_error: Annotated[float | None, _renamed("honest", "baseline_error")] = 0.0
    """Nats by which the baseline's claims were off, at most; None for the baseline itself, which is to show that."""
    pruning_thresholds: Annotated[tuple[PruningThreshold, ...], _renamed("bounds", "pruning_thresholds")] = ()
    control_run: Annotated[bool, _renamed("reprieved", "control_run")] = False
    """Let it finish even if it is hopeless: that is how often this is wrong."""


class Granted(Frozen):
    """A run: one training of one candidate with one seed in one slot."""

    kind: Literal["granted"] = "granted"
    experiment: int
    run: int
    """Counts the grants of this experiment from 1; it fences off what an earlier life left behind."""
    slot: int
    seed: int
    plan: Annotated[EvaluationPlan | None, _renamed("terms", "plan")] = None
    """None in sessions of before there were any."""


class Point(Frozen):
    """One point of a loss curve."""

    seconds: float
    progress: float
    """Share of the budget that is used up, 0 to 1."""
    loss: float


class RunMetrics(Frozen):
    """What was measured of a run from outside and from its own lines; 0 where unknown."""

    train_seconds: float = 0.0
    total_seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    parameters: int = 0
    memory_mb: float = 0.0


class Audit(Frozen):
    """What a second, blind process found of a score."""

    claimed: float
    """val_bpb before it was corrected."""
    error: float
    """Standard error of the correction."""
    worst: float
    """Nats by which a claim was better than the blind answer, at most."""
    looks: int
    seconds: float
    evaluation: float
    """Seconds that the claims took, before."""


class Scored(Frozen):
    kind: Literal["scored"] = "scored"
    experiment: int
    run: int
    val_bpb: float
    metrics: Annotated[RunMetrics, _renamed("measures", "metrics")]
    curve: tuple[Point, ...]
    log: Digest
    tier: str = "none"
    """The sandbox it ran in."""
    audit: Audit | None = None
    """None where the claim was of no consequence."""
    confirmed: float | None = None
    """val_bpb on text that no decision has used; None where it was not examined so."""
    would_prune_at: Annotated[float | None, _renamed("condemned", "would_prune_at")] = None
    """The share of the budget at which it would have been ended as hopeless, had it not been reprieved."""


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
    "hopeless",
    "other",
]
"""Disqualified: it ran to its end, but its score is not to be believed. Hopeless: it was ended, being far behind."""


class Crashed(Frozen):
    """The candidate's own fault: an experiment's failure is a value."""

    kind: Literal["crashed"] = "crashed"
    experiment: int
    run: int
    failure: FailureKind
    message: str
    """The last line that says why; a few hundred characters at most."""
    metrics: Annotated[RunMetrics, _renamed("measures", "metrics")]
    curve: tuple[Point, ...]
    log: Digest
    tier: str = "none"


class Aborted(Frozen):
    """The machine's fault, not the candidate's: the run does not count."""

    kind: Literal["aborted"] = "aborted"
    experiment: int
    run: int
    reason: str


class Kept(Frozen):
    kind: Literal["kept"] = "kept"
    experiment: int
    mean: float
    gain: float
    """Best mean before minus mean now: positive is better."""
    error: float
    """Standard error of the gain."""
    sigma: float
    score_to_beat: Annotated[float, _renamed("mark", "score_to_beat")]
    """The mean to beat from now on: never worse than the one before, so that small losses cannot add up."""
    reason: str


class Discarded(Frozen):
    kind: Literal["discarded"] = "discarded"
    experiment: int
    mean: float
    gain: float
    error: float
    sigma: float
    reason: str


class Failed(Frozen):
    """Judged without a score."""

    kind: Literal["failed"] = "failed"
    experiment: int
    reason: str
    failure: FailureKind = "other"


class Promoted(Frozen):
    """The research branch moved on."""

    kind: Literal["promoted"] = "promoted"
    experiment: int
    commit: str


class Reflected(Frozen):
    kind: Literal["reflected"] = "reflected"
    experiment: int
    postmortem: Postmortem


class ReflectionSkipped(Frozen):
    """Done with, without a post-mortem."""

    kind: Literal["closed"] = "closed"
    experiment: int
    reason: str


class Waiting(Frozen):
    """A model asks us to come back later; training goes on meanwhile."""

    kind: Literal["waiting"] = "waiting"
    until: float
    reason: str


class Tokens(Frozen):
    """Of one request, as the provider counts them."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0


class ConversationOpened(Frozen):
    """A conversation begins: what the agent is told."""

    kind: Literal["opened"] = "opened"
    experiment: int
    agent: str
    model: str
    system: Digest
    opening: Digest


class ModelReplied(Frozen):
    """A model's whole answer, block by block as it came."""

    kind: Literal["replied"] = "replied"
    agent: str
    experiment: int
    request: Digest
    """Of everything that was sent."""
    message: dict[str, Any]
    tokens: Tokens
    usd: float | None


class ToolUsed(Frozen):
    """A tool did something for an agent."""

    kind: Literal["used"] = "used"
    tool: str
    call: str
    result: str
    is_error: bool = False


Outcome = Scored | Crashed | Aborted
Verdict = Kept | Discarded | Failed
Event = Annotated[
    Started
    | Resumed
    | Forked
    | GuidanceChanged
    | StopAsked
    | Ended
    | BaselineCommitted
    | Proposed
    | Unanswered
    | Refused
    | Abandoned
    | Committed
    | Granted
    | Scored
    | Crashed
    | Aborted
    | Kept
    | Discarded
    | Failed
    | Promoted
    | Reflected
    | ReflectionSkipped
    | Waiting
    | ConversationOpened
    | ModelReplied
    | ToolUsed,
    Field(discriminator="kind"),
]


class Record(Frozen):
    """An event with its place and time."""

    seq: int
    at: float
    """Seconds since the epoch."""
    task_id: str
    """The step that wrote it; empty for what comes from outside: the user, the clock, a restart."""
    event: Event


EVENT: TypeAdapter[Event] = TypeAdapter(Event)
