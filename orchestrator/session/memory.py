"""Recall what earlier sessions found, so that a new night starts from there."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import reduce
from itertools import islice
from operator import itemgetter
from pathlib import Path

from orchestrator.core.events import EarlierResult, Evidence, SessionProfile, Started
from orchestrator.core.state import UNTESTED, PooledVariance
from orchestrator.core.task import Task
from orchestrator.policy.pruning import list_gaps
from orchestrator.repo import Repo
from orchestrator.session.store import DAMAGE, Session, read_start
from prepare.command import UserError
from prepare.constants import read_values
from prepare.files import list_by_age

MAX_SESSIONS, MAX_STARTS = 10, 200
"""Latest of these sessions that are read, since each takes a moment at the start of a night, and that are looked at."""
MAX_RESULTS = 200  # results that are carried over; the briefing shows what fits into its budget


def recall_results(
    sessions: Path, profile: SessionProfile, task: Task, gpu: str = "", repo: Repo | None = None
) -> tuple[tuple[EarlierResult, ...], PooledVariance]:
    """Return the results of the latest sessions with this task, data, budget and GPU, newest first, and their noise.

    Of a reported task, whose data are not known, only those of the project in `repo`, where it is given. What a fork
    shares with its parent counts once, and of their noise the best measured. A damaged file has nothing to add;
    `sessions` reports it.
    """
    found, noise = dict[str, EarlierResult](), defaultdict[int, PooledVariance](PooledVariance)
    for path in _list_alike(sessions, profile, task, gpu, repo)[:MAX_SESSIONS]:
        with suppress(OSError, UserError, *DAMAGE), closing(Session(path, read_only=True)) as session:
            found |= {commit: result for commit, result in _list_results(session) if commit not in found}
            started = session.state.session
            if not (started.keeps_seed or started.task.is_repeated):  # identical runs tell nothing of others' noise
                seed = started.seed  # forks have it, and nights of one --seed have much of their noise in common
                noise[seed] = max(noise[seed], session.state.variance, key=lambda each: each.dof)
    return tuple(found.values())[:MAX_RESULTS], reduce(PooledVariance.pool, noise.values(), PooledVariance())


def _list_alike(sessions: Path, profile: SessionProfile, task: Task, gpu: str, repo: Repo | None) -> list[Path]:
    """Return the sessions that can be compared, the latest first; after them further forks of the same nights."""
    found, before = list[tuple[int, Path]](), Counter[str]()
    for path, started in islice(_find_alike(sessions, profile, task, gpu, repo), MAX_STARTS):
        found.append((before[begun := started.model_dump_json()], path))
        before[begun] += 1
    return [path for _, path in sorted(found, key=itemgetter(0))]


def _find_alike(
    sessions: Path, profile: SessionProfile, task: Task, gpu: str, repo: Repo | None
) -> Iterator[tuple[Path, Started]]:
    """Yield the files of the sessions that can be compared, and how each began, the latest first."""
    for path in reversed(list_by_age(sessions.glob("[!.]*/session.db"))):
        with suppress(OSError, UserError, *DAMAGE):
            started = read_start(path)
            alike = not gpu or started.gpu in {"", gpu}  # an earlier edition did not record it
            alike = alike and list_conditions(started.profile, started.task) == list_conditions(profile, task)
            if alike and (not repo or not task.is_reported or repo.has_begun(started.commit, started.folder)):
                yield path, started


def list_conditions(profile: SessionProfile, task: Task) -> tuple[object, ...]:
    """Return what must be equal for scores to be compared; what the user writes in program.md does not matter."""
    data = (profile.data_hash, profile.budget_kind, profile.budget)
    return (*data, task.form, task.command, task.editable, task.metric, task.budget, task.data)


def _list_results(session: Session) -> Iterator[tuple[str, EarlierResult]]:
    """Yield what was judged and the constants that it changed, the latest first, each with the commit of the test."""
    gaps = list_gaps(session.state)
    for result in reversed(session.state.judged):
        proposal, verdict, commit = result.proposal, result.verdict, result.commit
        if result.experiment == 0 or commit is None or result.status in UNTESTED or proposal.reverts is not None:
            continue
        values = read_values(session.get(session.state.get_base(commit)))
        measured = {"gain": verdict.gain, "error": verdict.error} if isinstance(verdict, Evidence) else {}
        earlier = EarlierResult(
            session=session.state.session.name,
            experiment=result.experiment,
            title=proposal.title,
            family=proposal.family,
            changes={constant: value for constant, value in proposal.settings.items() if constant in values},
            before={constant: values[constant] for constant in proposal.settings if constant in values},
            status=result.status,
            lesson=result.postmortem.lesson if result.postmortem else "",
            gaps=gaps.get(result.experiment, ()),
            **measured,
        )
        yield commit.commit, earlier
