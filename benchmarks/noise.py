"""False keeps and power of our policy, of upstream's rule and of the published 1.5 × noise-floor rule.

Candidates are drawn, not trained: a score is the true value plus normal noise of σ = 1 (in units of the profile's σ).
"""

import random
import statistics
from collections.abc import Callable

from orchestrator.core import events as ev
from orchestrator.core.state import BASELINE, Candidate, Incumbent, PooledVariance, State
from orchestrator.policy import judge, thresholds

SIGMA = 0.008
NIGHT = 200
EFFECTS = (0.0, 1.0, 2.0, 3.0, 4.0)
Judge = Callable[[random.Random, float], tuple[float, float]]


def score(luck: random.Random, gain: float) -> ev.Scored:
    value = 2.0 - gain * SIGMA + luck.gauss(0, SIGMA)
    return ev.Scored(experiment=1, run=1, val_bpb=value, metrics=ev.RunMetrics(), curve=(), log="")


def fresh_state(luck: random.Random, profile: str) -> State:
    scores = tuple(score(luck, 0.0) for _ in range(thresholds.BASELINE_RUNS))
    score_to_beat = statistics.fmean(s.val_bpb for s in scores)
    started = ev.Started(
        name="noise",
        limits=ev.SessionLimits(hours=1e6),
        crew="none",
        style="none",
        seed=0,
        repairs=0,
        reflect_every=0,
        commit="",
        profile=ev.SessionProfile(
            name=profile,
            budget_kind="work",
            budget=1,
            expected_seconds=1,
            data_hash="",
            sigma=SIGMA if profile == "cpu" else 0.0,
        ),
        prompts={},
        versions={},
    )
    return State(
        started=started,
        incumbent=Incumbent(0, scores, score_to_beat, len(scores)),
        variance=PooledVariance().add(scores),
    )


def ours(luck: random.Random, gain: float, profile: str = "cpu", night: int = NIGHT) -> tuple[float, float]:
    """Share kept and runs per experiment of one night, by the policy itself."""
    state, kept, runs = fresh_state(luck, profile), 0, 0
    commit = ev.Committed(experiment=1, commit="", parent=0, source="", fingerprint="", added=1, removed=0)
    for _ in range(night):
        candidate = Candidate(BASELINE, commit)
        need = "again"
        while isinstance(need, str):
            runs += 1
            if need == "remeasure":
                state = _remeasured(state, score(luck, 0.0))
            else:
                candidate = Candidate(BASELINE, commit, (*candidate.scores, score(luck, gain)), candidate.runs + 1)
            need = judge.judge(state, 1, candidate)
        kept += isinstance(need, ev.Kept)  # the incumbent stays, so that every edit is compared with the same one
        state = _with_spread(state, state.variance.add(candidate.scores))
    return kept / night, runs / night


def _remeasured(state: State, again: ev.Scored) -> State:
    scores = (*state.incumbent.scores, again)
    score_to_beat = statistics.fmean(s.val_bpb for s in scores)
    spread = state.variance.remove(state.incumbent.scores).add(scores)
    return State(started=state.started, incumbent=Incumbent(0, scores, score_to_beat, len(scores)), variance=spread)


def _with_spread(state: State, spread: PooledVariance) -> State:
    return State(started=state.started, incumbent=state.incumbent, variance=spread)


def upstream(luck: random.Random, gain: float) -> tuple[float, float]:
    """One baseline run; kept if lower."""
    score_to_beat = score(luck, 0.0).val_bpb
    return statistics.fmean(score(luck, gain).val_bpb < score_to_beat for _ in range(NIGHT)), 1.0


def noise_floor(luck: random.Random, gain: float) -> tuple[float, float]:
    """Kept if lower by 1.5 times σ, which is known exactly here, as it is not in practice."""
    score_to_beat = score(luck, 0.0).val_bpb
    return statistics.fmean(score_to_beat - score(luck, gain).val_bpb > 1.5 * SIGMA for _ in range(NIGHT)), 1.0


def rows(nights: int = 60) -> dict[str, list[tuple[float, float]]]:
    """For each rule and each true gain: the share kept, and runs per experiment."""
    rules: dict[str, Judge] = {
        "upstream: lower is better": upstream,
        "1.5 × noise floor": noise_floor,
        "nightshift": ours,
    }
    table = {}
    for name, rule in rules.items():
        luck = random.Random(1)
        table[name] = [_average([rule(luck, effect) for _ in range(nights)]) for effect in EFFECTS]
    return table


def _average(nights: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.fmean(n[0] for n in nights), statistics.fmean(n[1] for n in nights)


def main() -> None:
    print(f"Share of edits kept by their true gain, over nights of {NIGHT} (runs per experiment in brackets)\n")
    print("| rule | " + " | ".join(f"{effect:g}σ" for effect in EFFECTS) + " |")
    print("|---|" + "---|" * len(EFFECTS))
    for name, cells in rows().items():
        print(f"| {name} | " + " | ".join(f"{100 * kept:.2f} % ({runs:.2f})" for kept, runs in cells) + " |")
