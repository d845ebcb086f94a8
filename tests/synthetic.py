"""Sessions of any length, made up: every kind of outcome, long-winded authors, a log that folds.

`records(n)` gives the records of a session with n experiments; `log(n)` a Log that holds them, and the texts they name.
"""

import random
from collections.abc import Iterator

from orchestrator.agents.briefing import CHARACTERS
from orchestrator.core import events as ev
from orchestrator.core.source import compute_digest, compute_fingerprint
from orchestrator.ports import Log

FAMILIES = (
    "attention",
    "MLP",
    "optimizer",
    "schedule",
    "batch",
    "size",
    "init",
    "regularisation",
    "data order",
    "other",
)
NAMES = ("DEPTH", "MATRIX_LR", "EMBEDDING_LR", "UNEMBEDDING_LR", "WEIGHT_DECAY", "WARMUP_RATIO", "WARMDOWN_RATIO")
PROSE = (
    "the gradient noise scale at this budget is far above the batch so that every step moves mostly by chance while "
    "the learning rate decays too late for the embedding to settle and the curve parts from the base in the warm-down "
)
SIGMA = 0.004
LOG_TEXT = "step 1 | loss: 7.0\rstep 2 | loss: 6.5\r---\nval_bpb: 2.0\n"


def source(number: int = 0) -> str:
    """A train.py with many constants, a little different for each number."""
    lines = [f"{name} = {0.01 * (i + 1)}  # 0.001..1.0 log – what {name} is for" for i, name in enumerate(NAMES)]
    return "\n".join([f'"""Experiment {number}."""', *lines, f"VERSION = {number}", "print('---')", ""])


def records(n: int, *, seed: int = 0, talk: bool = False, limits: ev.SessionLimits | None = None) -> list[ev.Record]:
    """The records of a session with `n` experiments after the baseline; with `talk`, of its conversations, too."""
    events = _session(n, random.Random(seed), talk, limits or ev.SessionLimits(hours=24 * 365, usd=1000.0))
    return [
        ev.Record(seq=i, at=1.8e9 + 5.0 * i, task_id=task_id, event=event) for i, (task_id, event) in enumerate(events)
    ]


def log(n: int, **how) -> Log:
    """A log in memory that holds such a session, and the texts that it names."""
    commit = Log()
    for number in range(n + 1):
        commit.put(source(number))
    commit.put(LOG_TEXT)
    commit.fold(*records(n, **how))
    return commit


def sentence(luck: random.Random, length: int) -> str:
    """So many characters of prose."""
    start = luck.randrange(len(PROSE))
    return f"{luck.randrange(1000)} {PROSE[start:]}{PROSE * (length // len(PROSE) + 1)}"[: length - 1] + "."


def recall_one(luck: random.Random, number: int) -> ev.EarlierResult:
    """A result of an earlier session, as long as one gets."""
    name, old, new = luck.choice(NAMES), luck.random(), luck.random()
    return ev.EarlierResult(
        session="earlier",
        experiment=number,
        title=sentence(luck, 88),
        family="optimizer",
        changes={name: new},
        before={name: old},
        status=luck.choice(("kept", "discarded")),
        gain=luck.gauss(0, 0.01),
        error=0.003,
        lesson=sentence(luck, 240),
    )


def proposal(luck: random.Random, **changes) -> ev.Proposal:
    """One by an author who uses all the room there is."""
    name = luck.choice(NAMES)
    fields = {
        "title": sentence(luck, 88),
        "hypothesis": sentence(luck, 290),
        "rationale": sentence(luck, 1700),
        "expected_delta": round(luck.gauss(-0.005, 0.004), 4),
        "family": luck.choice(FAMILIES),
        "direction": luck.choice(["up", "down"]),
        "settings": {name: round(luck.random(), 3)},
        "instructions": sentence(luck, 2400),
    }
    return ev.Proposal(**fields | changes)


def _session(n, luck, talk, limits) -> Iterator[tuple[str, object]]:
    profile = ev.SessionProfile(name="cpu", budget_kind="work", budget=1e13, expected_seconds=25.0, data_hash="d" * 16)
    yield (
        "",
        ev.Started(
            name="synthetic",
            limits=limits,
            crew="claude",
            style="default",
            seed=7,
            repairs=2,
            reflect_every=1,
            commit="c" * 40,
            profile=profile,
            prompts={},
            versions={},
            earlier=tuple(recall_one(random.Random(number), number) for number in range(200)),
        ),
    )
    yield "", ev.GuidanceChanged(text=sentence(luck, 6000))
    yield (
        "fit",
        ev.BaselineCommitted(
            commit="f" * 40, source=compute_digest(source()), fingerprint=compute_fingerprint(source())
        ),
    )
    best = 2.25
    for run in range(1, 4):
        yield f"train 0.{run}", _granted(0, run)
        yield f"train 0.{run}", _scored(0, run, best, luck)
    numbers = {"mean": best, "gain": 0.0, "error": SIGMA / 3**0.5, "sigma": SIGMA}
    yield "judge 0", ev.Kept(experiment=0, score_to_beat=best, reason="the baseline, over 3 seeds", **numbers)
    yield "promote 0", ev.Promoted(experiment=0, commit="f" * 40)
    yield "close 0", ev.ReflectionSkipped(experiment=0, reason="no post-mortem is due")
    base = 0
    for number in range(1, n + 1):
        gain = 0.02 if luck.random() < 0.03 else luck.gauss(-0.004, SIGMA)
        yield from _experiment(number, base, best, gain, luck, talk)
        if gain >= 0.015 and _fate(number) == "ran":
            best, base = best - gain, number


def _experiment(number, base, best, gain, luck, talk):
    if talk:
        yield from converse(f"propose {number}", "researcher", number, luck)
    yield f"propose {number}", ev.Proposed(experiment=number, proposal=proposal(luck))
    if _fate(number) == "refused":
        yield f"refuse {number}", ev.Refused(experiment=number, reason=f"{luck.choice(NAMES)} up 0.1 was experiment 1")
        return
    if talk:
        yield from converse(f"implement {number}", "mechanic", number, luck)
    if _fate(number) == "abandoned":
        yield f"implement {number}", ev.Abandoned(experiment=number, reason=sentence(luck, 300))
        return
    text = source(number)
    names = {"source": compute_digest(text), "fingerprint": compute_fingerprint(text)}
    names["commit"] = f"{compute_digest(text):0<40}"
    commit = ev.Committed(experiment=number, parent=base, added=3, removed=2, **names)
    yield f"implement {number}", commit
    yield f"train {number}.1", _granted(number, 1)
    if _fate(number) == "crashed":
        yield f"train {number}.1", _crashed(number, luck)
        yield f"judge {number}", ev.Failed(experiment=number, reason=f"NaN: {sentence(luck, 200)}")
    else:
        yield f"train {number}.1", _scored(number, 1, best - gain, luck)
        error = SIGMA * (1 + 1 / 3) ** 0.5
        numbers = {"mean": best - gain, "gain": gain, "error": error, "sigma": SIGMA, "reason": "by its score"}
        kept = gain >= 0.015
        verdict = (
            ev.Kept(experiment=number, score_to_beat=best - gain, **numbers)
            if kept
            else ev.Discarded(experiment=number, **numbers)
        )
        yield f"judge {number}", verdict
        if kept:
            yield f"promote {number}", ev.Promoted(experiment=number, commit=commit.commit)
    if talk:
        yield from converse(f"reflect {number}", "reflector", number, luck)
    yield f"reflect {number}", ev.Reflected(experiment=number, postmortem=postmortem(luck))


def _fate(number):
    return {7: "refused", 11: "abandoned", 13: "crashed"}.get(number % 17, "ran")


def _granted(number, run):
    return ev.Granted(experiment=number, run=run, slot=0, seed=1000 * number + run)


def _measures(luck):
    steps = luck.randrange(90, 110)
    return ev.RunMetrics(
        train_seconds=20.0, total_seconds=25.0, steps=steps, tokens=2048 * steps, parameters=10**6, memory_mb=900.0
    )


def _curve(luck):
    return tuple(
        ev.Point(seconds=i, progress=i / 20, loss=7 - 4 * (i / 20) ** 0.5 + luck.gauss(0, 0.02)) for i in range(1, 21)
    )


def _scored(number, run, score, luck):
    known = {"metrics": _measures(luck), "curve": _curve(luck), "log": compute_digest(LOG_TEXT)}
    return ev.Scored(experiment=number, run=run, val_bpb=score + luck.gauss(0, SIGMA), **known)


def _crashed(number, luck):
    known = {"metrics": _measures(luck), "curve": _curve(luck)[:7], "log": compute_digest(LOG_TEXT)}
    return ev.Crashed(experiment=number, run=1, failure="NaN", message=sentence(luck, 200), **known)


def postmortem(luck):
    verdict = luck.choice(["supported", "refuted", "inconclusive"])
    texts = {"happened": 690, "why": 890, "lesson": 240, "next": 390}
    return ev.Postmortem(verdict=verdict, **{name: sentence(luck, length) for name, length in texts.items()})


def converse(task_id, agent, number, luck):
    yield (
        task_id,
        ev.ConversationOpened(
            experiment=number, agent=agent, model="claude-opus-5-5", system="s" * 16, opening="o" * 16
        ),
    )
    call = {"type": "tool_use", "id": f"toolu_{number}", "name": "look", "input": {"words": sentence(luck, 60)}}
    for stop, content in (("tool_use", [call]), ("end_turn", [{"type": "text", "text": sentence(luck, 300)}])):
        tokens = ev.Tokens(input=luck.randrange(2000, 6000), cache_read=4000, output=luck.randrange(200, 1200))
        message = {"role": "assistant", "content": content, "stop_reason": stop}
        yield (
            task_id,
            ev.ModelReplied(agent=agent, experiment=number, request="r" * 16, message=message, tokens=tokens, usd=0.02),
        )
        if stop == "tool_use":
            yield task_id, ev.ToolUsed(tool="look", call=call["id"], result=sentence(luck, 500))


def count_tokens(text: str) -> int:
    """Return roughly how many tokens a text is."""
    return round(len(text) / CHARACTERS)
