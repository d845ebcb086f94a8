"""What a session says at its end about how far its scores can be believed."""

import re

import pytest

from orchestrator.core.events import Audit, Crashed, Record, RunMetrics, Scored
from orchestrator.core.state import State
from orchestrator.lab.sandbox import select
from orchestrator.ports import Log
from orchestrator.views.summary import describe_trust
from tests.fakes import started
from tests.workplace import BEST, orchestrate, workplace

KEY = {"run": 1, "metrics": RunMetrics(), "curve": (), "log": "x"}


def log_of(*events):
    """A log that holds these records, whatever came before them."""
    log = Log()
    log.state = State(started=started())
    log.records = [Record(seq=seq, at=0.0, task_id="", event=event) for seq, event in enumerate(events)]
    return log


def test_audits_and_disqualifications_are_counted():
    audit = Audit(claimed=2.0, error=0.0, worst=0.1, looks=9, seconds=1.0, evaluation=1.0)
    lie = {"failure": "disqualified", "message": "it lies", "tier": "bubblewrap"}
    log = log_of(
        Scored(experiment=1, val_bpb=2.01, audit=audit, tier="bubblewrap", **KEY),
        Scored(experiment=2, val_bpb=3.0, tier="bubblewrap", **KEY),
        Crashed(experiment=3, **lie, **KEY),
        Crashed(experiment=3, **lie, **KEY),
        Crashed(experiment=4, failure="NaN", message="", tier="bubblewrap", **KEY),
    )
    assert describe_trust(log) == "bubblewrap; 1 audited, off by 0.01 at most; 1 disqualified (experiment 3)"


def test_without_any_of_it_that_is_said():
    run = Scored(experiment=1, val_bpb=2.01, tier="none", **KEY)
    assert describe_trust(log_of(run)) == "no sandbox; none audited; 0 disqualified"
    assert describe_trust(log_of()) == "no run has ended"


@pytest.mark.parametrize(("words", "tier"), [((), "bubblewrap|landlock"), (("--unsafe",), "no sandbox")])
def test_a_night_names_its_sandbox_and_its_audits(tmp_path, words, tier):
    try:
        select.select_sandbox()
    except select.NoSandboxError as reason:
        pytest.skip(str(reason))
    place = workplace(tmp_path / "place", BEST)
    night = orchestrate(place, "--offline", "--max-experiments", "1", "--hours", "1", "--seed", "3", *words)
    assert night.returncode == 0, night.stderr
    assert re.search(rf"trust +({tier}); \d+ audited, off by \S+ at most.*; 0 disqualified", night.stdout), night.stdout
