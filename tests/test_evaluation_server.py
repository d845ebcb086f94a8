"""The connection to a run: what is handed out and when, whatever it sends; and what a run by hand does without one."""

import asyncio
import fcntl
import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.core.events import EvaluationPlan
from orchestrator.lab.monitor import RunLimits, RunMonitor
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.scoring.connection import MAX_LINE, open_pair
from orchestrator.lab.scoring.server import CHUNK, TrainingServer
from prepare import channel
from prepare.manifest import BudgetAmount
from tests.small import LENGTH, small_data

PLAN = EvaluationPlan(audit="always", confirmed=False, incumbent=0, startup_cpu=10.0, evaluation=5.0)
ROOT = Path(__file__).parent.parent
MANNER = '"batch_size": 4, "autocast": null, "precision": "highest", "threads": 1'


class Ticks:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


class Running(RunMonitor):
    """A process that has used seven CPU seconds, if not told otherwise."""

    seconds = itertools.repeat(7.0)

    def count_cpu_seconds(self):
        return next(self.seconds)


class Visit:
    """A server in its thread, and the run's end of the connection."""

    def __init__(self, folder, plan=PLAN, budget=None):
        self.plan, self.scorer = plan, Scorer.load(small_data(folder / "data", budget))
        self.monitor, descriptors = Running(RunLimits(wall=1e9), Ticks()), queue.SimpleQueue()
        self.failures = list[Exception]()
        self.server = threading.Thread(target=lambda: asyncio.run(self.serve(folder / "model", descriptors)))
        self.server.start()
        self.run = socket.socket(fileno=descriptors.get(timeout=30))

    async def serve(self, model, descriptors):
        connection, descriptor = await open_pair()
        self.submission = TrainingServer(connection, self.scorer, 1, self.plan, self.monitor, model)
        descriptors.put(descriptor)
        try:
            await self.submission.serve()
        except OSError as error:
            self.failures.append(error)

    def say(self, *words):
        self.run.sendall("".join(f"{word}\n" for word in words).encode())

    def shown(self):
        message, fds, _, _ = socket.recv_fds(self.run, 4096, 4)
        found = [os.pread(fd, 1 << 20, 0) for fd in fds]
        for fd in fds:
            assert fd and os.get_blocking(fd) is not None
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
            os.close(fd)
        return message, found

    @property
    def objection(self):
        """Why the run must end; empty if it need not."""
        return str(self.monitor.cause or "")

    def leave(self):
        self.run.close()
        self.server.join(timeout=30)
        assert not self.server.is_alive()


@pytest.fixture
def visit(tmp_path):
    visit = Visit(tmp_path)
    yield visit
    visit.leave()


def test_a_run_is_shown_the_training_text_and_nothing_else(visit):
    visit.say('{"event": "ready"}')
    message, found = visit.shown()
    assert b'"train"' in message
    assert found == [(visit.scorer.folder / "train.bin").read_bytes()]
    visit.say(f'{{"event": "model", "bytes": 5, {MANNER}}}')
    visit.run.sendall(b"abcde")
    message, found = visit.shown()
    assert (message, found) == (b'{"event": "thanks"}\n', [])
    assert visit.submission.model.read_bytes() == b"abcde"
    visit.say(f'{{"event": "model", "bytes": 2, {MANNER}}}')  # it evaluates in between, and the last model counts
    visit.run.sendall(b"fg")
    assert visit.shown() == (b'{"event": "thanks"}\n', [])
    visit.say(f'{{"event": "model", "bytes": {CHUNK + 1}, {MANNER}}}')  # its clock does not stop, so it does not count
    visit.run.sendall(bytes(CHUNK))
    visit.leave()
    assert visit.submission.model.read_bytes() == b"fg"
    assert visit.submission.model.stat().st_mode & 0o777 == 0o444, "its owner cannot reopen a descriptor for writing"
    assert (visit.objection, visit.monitor.train_seconds > 0) == ("", True)
    assert visit.monitor.startup_cpu == 7.0


def test_a_start_that_takes_longer_than_the_baselines_counts_as_training(visit):
    visit.monitor.seconds = iter([500.0, 501.0])  # of CPU time, at the first batch and at the end; 10 are free
    visit.say('{"event": "ready"}')
    visit.shown()
    visit.say(f'{{"event": "model", "bytes": 1, {MANNER}}}')
    visit.run.sendall(b"m")
    visit.shown()
    visit.leave()
    assert visit.objection.startswith("it trained for 486 s of CPU time")


@pytest.mark.parametrize(
    ("measured", "percent", "objection"),
    [
        ({"baseline_error": "unmeasured"}, 0.0, ""),  # the baseline
        ({"uncounted": 290.0}, 0.0, ""),
        ({"uncounted": 100.0}, 0.0, "it trained for 55"),  # it may take half as long again
        ({}, 0.0, "it trained for 70"),
        ({"baseline_error": "unmeasured"}, 1.0, "it trained for 70"),
    ],
)
def test_first_steps_that_the_script_does_not_count_are_free_as_far_as_the_baselines(
    tmp_path, measured, percent, objection
):
    plan = EvaluationPlan(audit="always", confirmed=False, incumbent=0, **measured)
    visit = Visit(tmp_path, plan, BudgetAmount(kind="time", amount=300.0, seconds=300.0))
    visit.say('{"event": "ready"}')
    visit.shown()
    for seconds in (400, 300):
        for _ in range(seconds):
            visit.monitor.read_clock()
        visit.monitor.feed(f"step 00001 ({percent if seconds == 400 else 99.0}%) | loss: 5.0\n".encode())
    visit.say(f'{{"event": "model", "bytes": 1, {MANNER}}}')
    visit.run.sendall(b"m")
    visit.shown()
    visit.leave()
    assert visit.objection.startswith(objection)
    assert bool(visit.objection) == bool(objection)
    assert ("s do not count" in visit.monitor.transcript.log) == (percent == 0.0 and measured != {})


def test_nothing_more_is_shown_for_asking_twice_or_otherwise(visit):
    visit.say('{"event": "claims", "bytes": 4}', '{"event": "rows"}', "[1]", "{", '{"event": {"event": "ready"}}')
    visit.say("x" * (3 * MAX_LINE), '{"event": "score", "val_bpb": 0.1}', '{"event": "ready"}', '{"event": "ready"}')
    assert b'"train"' in (first := visit.shown())[0]
    began = visit.monitor.training_began
    assert visit.shown() == first, "to a process that loads the batches, and to its parent"
    visit.say('{"event": "ready"}')
    assert visit.shown() == first
    assert visit.monitor.training_began == began
    visit.run.settimeout(0.2)
    with pytest.raises(TimeoutError):
        visit.run.recv(1)
    assert visit.submission.settings is None


def test_who_asks_again_and_again_and_does_not_listen_is_left(visit):
    with pytest.raises(ConnectionError):
        for _ in range(100):
            visit.say(*['{"event": "ready"}'] * 1_000)
    visit.server.join(timeout=30)
    assert not visit.server.is_alive()
    assert not visit.failures


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (f'"bytes": 0, {MANNER}', "its model has 0 bytes"),
        (f'"bytes": {1 << 60}, {MANNER}', "its model has 1,152"),
        ('"bytes": 1', "how its model is to be run"),
        (f'"bytes": 1, {MANNER.replace("4", "-4")}', "how its model is to be run: batch_size: Input should be greater"),
        (f'"bytes": 1, {MANNER.replace("null", "7")}', "how its model is to be run"),
    ],
)
def test_a_model_that_makes_no_sense(visit, header, words):
    visit.say(f'{{"event": "model", {header}}}')
    with suppress(BrokenPipeError):  # the server may have left already
        visit.run.sendall(b"x")
    visit.server.join(timeout=30)
    assert words in visit.objection


def test_who_leaves_in_the_middle_has_delivered_nothing(visit):
    visit.say(f'{{"event": "model", "bytes": 99, {MANNER}}}')
    visit.leave()
    assert (visit.submission.settings, visit.objection) == (None, "")


@pytest.mark.parametrize("length", [MAX_LINE + 1, MAX_LINE + 5, 7 * MAX_LINE])
async def test_a_long_line_is_ignored_and_the_next_one_is_read(length):
    connection, descriptor = await open_pair()
    theirs = socket.socket(fileno=descriptor)
    theirs.sendall(b"x" * length + b'\n[]\n\xff\n{"event": 1}\n' + b'{"a":' * 700 + b'\n{"event": 2}\n')
    assert await connection.receive() == {"event": 1}
    assert await connection.receive() == {"event": 2}
    theirs.sendall(b"12")
    theirs.close()
    with pytest.raises(ConnectionError):
        await connection.read_exactly(3)
    assert await connection.receive() is None
    connection.close()
    connection.close()


async def test_what_cannot_be_sent_is_the_others_fault(tmp_path):
    connection, descriptor = await open_pair()
    os.close(descriptor)
    with pytest.raises(ConnectionError):
        for _ in range(3):
            await connection.send({"event": "thanks"})
            await asyncio.sleep(0)
    with pytest.raises(ConnectionError), Path(__file__).open("rb") as file:
        await connection.send({"event": "rows"}, file=file)
    connection.close()


async def test_answers_are_taken_apart_byte_by_byte_also_by_a_process_that_is_stopped_and_goes_on(a_run):
    connection, process = a_run
    with Path(__file__).open("rb") as file:
        await connection.send({"event": "rows", "split": "some"}, file=file, data=b"123")
    while any(fcntl.ioctl(connection.socket, termios.TIOCOUTQ, b"\0" * 4)):
        await asyncio.sleep(0.01)  # until it has taken these, and waits for more
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    process.send_signal(signal.SIGCONT)
    await asyncio.sleep(0.05)
    connection.writer.write(b"45")
    told = process.communicate(timeout=60)[0].splitlines()
    assert told == ["{'event': 'rows', 'split': 'some'}", "b'12345'", str(Path(__file__).stat().st_size)]
    connection.close()


@pytest.fixture
async def a_run():
    """Our end, and a real process at the other end, which prints what it makes of it."""
    connection, theirs = await open_pair()
    program = (
        "import os; from prepare import channel; print(channel.receive()); print(channel.take(5));"
        "print(os.fstat(channel.shard('some')).st_size)"
    )
    env = {"NIGHTSHIFT_FD": str(theirs), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=env, pass_fds=[theirs], stdout=subprocess.PIPE, text=True
    ) as process:
        os.close(theirs)
        yield connection, process


def test_by_hand_there_is_nobody_to_ask(tmp_path):
    folder = small_data(tmp_path / "data")
    program = "from prepare.shards import open_rows; from prepare import channel; channel.ready();"
    program += "print(channel.answers(), open_rows('train').shape[1], open_rows('val').shape[1])"
    env = {"NIGHTSHIFT_DATA": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(LENGTH + 1), str(LENGTH + 1)]
    assert channel.MAX_LINE == MAX_LINE
