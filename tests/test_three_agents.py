"""Three agents, the real command, a real server on loopback: a whole session, its replay, and what is in its file."""

import json

import pytest

from orchestrator.session.store import Session
from orchestrator.views import event_text
from tests.scripted import Scripted, served
from tests.workplace import REPORTED, ROOT, TINY, git, orchestrate, workplace

KEY = "sk-ant-never-to-be-seen-0123456789"
NIGHT = ("--hours", "1", "--max-experiments", "6", "--session", "night", "--seed", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = workplace(tmp_path_factory.mktemp("agents") / "place")
    (place / "guidance.md").write_text("Try learning rates first.\n")
    with served(Scripted(("turn", "abandon", "crash", "turn", "repeat", "turn"))) as url:
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
    assert happened[-1]["reason"] == "6 experiments are done"
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
    happened = events(place)
    assert f"{len(happened)} events" in done.stdout, "it goes on after the first"
    talks = [i for i, event in enumerate(happened) if event["kind"] == "opened" and event["agent"] == "researcher"]
    assert len(talks) > 5
    assert f"The openings of these conversations change: {', '.join(map(str, talks))}\n" in done.stdout
    assert done.stdout.count("event ") == len(talks), "and no reply, whose request differs of course"


def test_a_check_runs_the_edit_where_the_baseline_reports_a_step(tmp_path):
    report = "channel.send({'event': 'telemetry', 'progress': 0, 'values': {'step/calls': 5}})\nchannel.ready()"
    place = workplace(tmp_path / "place", TINY.replace("channel.ready()", report))
    with served(Scripted(("misfit",))) as url:
        words = ("--hours", "1", "--max-experiments", "1", "--session", "night")
        done = orchestrate(place, *words, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr

    happened = events(place)
    checks = [event for event in happened if event["kind"] == "used" and event["tool"] == "check"]
    assert [event["is_error"] for event in checks] == [True, False]
    assert "| AssertionError: scripted misfit\n| line " in checks[0]["result"]
    assert "a step of it ran" in checks[1]["result"]
    assert not [event for event in happened if event["kind"] == "crashed"]
    verified = orchestrate(place, "replay", "night", "--verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_an_agents_conversation_can_be_read(place):
    number = next(i for i, event in enumerate(events(place)) if event["kind"] == "used")

    shown = orchestrate(place, "replay", "night", "--show", str(number)).stdout
    session = Session(place / "sessions/night/session.db", read_only=True)
    full = event_text.write_page(session, number)

    assert "You are the researcher" in shown
    assert "researcher calls read_train_py" in shown
    assert "Try learning rates first." in shown
    assert "more lines (--full shows them)" in shown
    assert "--full" not in full
    assert len(full) > 2 * len(shown)


def test_an_experiment_leads_to_its_conversations(place):
    broken = next(event["experiment"] for event in events(place) if event["kind"] == "crashed")

    edits = orchestrate(place, "replay", "night", "--experiment", str(broken), "--agent", "mechanic").stdout
    session = Session(place / "sessions/night/session.db", read_only=True)
    talks = [session.records[number] for number in event_text.find_conversations(session.records, broken)]
    none = orchestrate(place, "replay", "night", "--experiment", "99")

    edit, repair = edits.split("mechanic on claude-sonnet-5-5 is told")[1:]
    first, answered = edit.split("── mechanic calls ")[1].split("\n── ")
    assert first.startswith("replace ")
    assert "\n-" in first
    assert '\n+raise RuntimeError("scripted crash")' in first, "an edit is a diff"
    assert answered.startswith("replace answers "), "a result stands by its call"
    assert "# It has crashed" in repair
    assert [talk.task_id.split()[0] for talk in talks] == ["propose", "implement", "repair", "reflect"]
    assert (none.returncode, none.stderr) == (2, "nightshift: night has no conversation about #99\n")


def test_no_key_is_in_any_file(place):
    for path in place.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_the_branch_reads_like_lab_notes(place):
    log = git(place, "log", "research/night")

    assert "Experiment: " in log
    assert "Val-bpb: " in log


def test_a_centaur_takes_a_share_of_the_trials(tmp_path):
    place = workplace(tmp_path / "place", REPORTED)
    researched(place, "--crew", "centaur", "--hours", "1", "--max-experiments", "3", "--session", "centaur")

    authors = [event["proposal"]["author"] for event in events(place, "centaur") if event["kind"] == "proposed"]
    assert authors == ["researcher", "researcher", "optimizer"]
    assert orchestrate(place, "replay", "centaur", "--verify").returncode == 0


def test_a_server_that_is_not_there_is_said_at_once(place):
    done = orchestrate(place, "--session", "lost", ANTHROPIC_BASE_URL="http://127.0.0.1:9", ANTHROPIC_API_KEY=KEY)

    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr
    assert not (place / "sessions/lost").exists()
