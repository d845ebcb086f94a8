"""Three agents, the real command, a real server on loopback: a whole session, its replay, and what is in its file."""

import json
import time

import pytest

from orchestrator.core.events import Proposed
from orchestrator.session.store import Session
from tests.scripted import Scripted, served
from tests.workplace import ROOT, git, orchestrate, workplace

KEY = "sk-ant-never-to-be-seen-0123456789"
NIGHT = ("--hours", "1", "--max-experiments", "10", "--session", "night", "--seed", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = workplace(tmp_path_factory.mktemp("agents") / "place")
    (place / "guidance.md").write_text("Try learning rates first.\n")
    with served(Scripted(("turn", "abandon", "crash", "turn", "repeat", "turn", "turn", "turn", "turn"))) as url:
        done = orchestrate(place, *NIGHT, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def researched(place, *words):
    """A command with a model that only ever turns knobs."""
    with served(Scripted(script=("turn",))) as url:
        done = orchestrate(place, *words, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def events(place, name="night"):
    done = orchestrate(place, "replay", name, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line)["event"] for line in done.stdout.splitlines()]


def test_crashes_are_repaired_repeats_refused_proposals_abandoned(place):
    happened = events(place)

    kinds = [event["kind"] for event in happened]
    assert kinds[-1] == "ended"
    assert happened[-1]["reason"] == "10 experiments are done"
    assert {"refused", "abandoned", "crashed", "kept", "reflected"} <= set(kinds)
    assert any(event["kind"] == "committed" and event["how"] == "repaired" for event in happened)
    assert any(event["kind"] == "guided" for event in happened)


def test_it_replays_without_server_or_key(place):
    done = orchestrate(place, "replay", "night", "--verify")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as recorded" in done.stdout


def test_a_changed_word_in_a_prompt_is_found_and_shown(place, tmp_path):
    (tmp_path / "style").mkdir()
    default = ROOT / "prompts/default/researcher.md"
    (tmp_path / "style/researcher.md").write_text(default.read_text().replace("bits per byte", "nibbles per byte", 1))

    done = orchestrate(place, "replay", "night", "--verify", "--prompts", str(tmp_path / "style"))

    assert done.returncode == 1
    assert "event" in done.stdout
    assert "nibbles" in done.stdout
    assert f"{len(events(place))} events" in done.stdout, "it goes on after the first"


def test_an_agents_conversation_can_be_read(place):
    number = next(i for i, event in enumerate(events(place)) if event["kind"] == "replied")

    shown = orchestrate(place, "replay", "night", "--show", str(number)).stdout

    assert "You are the researcher" in shown
    assert "researcher calls read_train_py" in shown
    assert "Try learning rates first." in shown


def test_no_key_is_in_any_file(place):
    for path in place.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_the_branch_reads_like_lab_notes(place):
    log = git(place, "log", "research/night")

    assert "Experiment: " in log
    assert "Val-bpb: " in log


def test_a_centaur_takes_a_share_of_the_trials(place):
    researched(place, "--crew", "centaur", "--hours", "1", "--max-experiments", "4", "--session", "centaur")

    authors = [event["proposal"]["author"] for event in events(place, "centaur") if event["kind"] == "proposed"]
    assert authors == ["researcher", "researcher", "optimizer", "researcher"]
    assert orchestrate(place, "replay", "centaur", "--verify").returncode == 0


def test_two_styles_are_tried_against_each_other(place):
    done = researched(
        place, "trial", "--prompts", "default", "--prompts", "none", "--repeats", "2", "--max-experiments", "2"
    )

    assert "trial-none-2" in done.stdout
    assert "more than" in done.stdout
    assert "2 pairs of equal seeds" in done.stdout
    assert (place / "sessions/compare.html").stat().st_size > 100_000
    kinds = [event["kind"] for event in events(place, "trial-none-1")]
    assert "reflected" not in kinds


def test_a_trial_goes_on_where_it_was_interrupted(place):
    """The first night stopped as by Ctrl-C, the second never began."""
    words = ("trial", "--prompts", "default", "--prompts", "none", "--repeats", "1", "--max-experiments", "1")
    researched(place, *words, "--name", "again")
    session = Session(place / "sessions/again-default-1/session.db", time.time)
    cut = next(record.seq for record in session.records if isinstance(record.event, Proposed))
    session.db.execute("delete from events where seq > ?", (cut,))
    session.db.commit()
    session.close()
    git(place, "branch", "-f", "research/again-default-1", session.state.parents[0].commit)

    done = researched(place, *words, "--name", "again")

    assert "again-none-1 is done already" in done.stdout
    kinds = [event["kind"] for event in events(place, "again-default-1")]
    assert "resumed" in kinds
    assert kinds[-1] == "ended"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--prompts", "default", "--prompts", "unheard-of"], "unheard-of"),
        (["--prompts", "default", "--prompts", "default"], "once"),
        (["--prompts", "default", "--crew", "optuna"], "optuna"),
    ],
)
def test_a_trial_that_cannot_be_is_one_line_before_any_night(place, words, answer):
    done = orchestrate(place, "trial", *words, "--name", "bad", ANTHROPIC_BASE_URL="http://127.0.0.1:9")

    assert done.returncode == 2
    assert answer in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((place / "sessions").glob("*bad*"))


def test_a_server_that_is_not_there_is_said_at_once(place):
    done = orchestrate(place, "--session", "lost", ANTHROPIC_BASE_URL="http://127.0.0.1:9", ANTHROPIC_API_KEY=KEY)

    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr
    assert not (place / "sessions/lost").exists()
