"""Nothing of a run outlives it, whoever dies first."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.lab import guardian
from orchestrator.lab.failures import MachineError
from orchestrator.lab.process import _clean_up
from orchestrator.lab.slots import Slot, hold_slot
from tests.small import small_data

SCRIPTS = Path(__file__).parent / "scripts"
ROOT = Path(__file__).parent.parent


def eventually(condition):
    """Wait, for as long as a busy machine may take, until it holds."""
    deadline = time.monotonic() + 150
    while not (result := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)
    return result


def guarded(*command, cpu=600, env=None):
    """A guardian with its command."""
    options = json.dumps({"fds": [], "limits": {"CPU": cpu, "CORE": 0}})
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guardian.PROGRAM, options, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )


def alive(pid):
    """Running; a zombie that its parent has not noticed yet is dead enough."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def folder(tmp_path):
    small_data(tmp_path / "data")
    return tmp_path


def noted(folder):
    """The process ids that the hostile script and its daemons have noted, once all three are there."""
    names = ("trainer", "tagged", "nameless")
    eventually(lambda: all((folder / name).exists() for name in names))
    return [int((folder / name).read_text()) for name in names]


def report(process):
    """What it reports, and what the command printed; its input stays open until it has."""
    report, printed = process.stdout.read(), process.stderr.read()
    process.communicate(timeout=60)
    return json.loads(report), printed


def test_it_reports_how_the_command_ended():
    found, said = report(
        guarded(sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); exit(3)")
    )
    assert found["status"] == 3
    assert sorted(said.split()) == [b"err", b"out"]
    assert found["left"] == 0


def test_it_measures_the_whole_tree():
    hungry = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'b = bytearray(200 << 20)'])"
    found, _ = report(guarded(sys.executable, "-c", hungry))
    assert found["peak_mb"] > 200


def test_it_counts_the_cpu_time_of_what_it_has_to_kill():
    daemon = """import os, time
ready, done = os.pipe()
if os.fork() == 0:
    os.setsid()
    while time.process_time() < 1: pass
    os.write(done, b"x")
    time.sleep(600)
os.read(ready, 1)
"""
    found, _ = report(guarded(sys.executable, "-I", "-S", "-c", daemon))
    assert (found["status"], found["left"]) == (0, 0)
    assert found["cpu"] >= 1


def test_it_says_when_there_is_no_such_command():
    found, _ = report(guarded("/no/such/program"))
    assert "No such file" in found["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="there are no CPUs to choose")
def test_it_says_when_it_cannot_do_its_part():
    options = json.dumps({"fds": [], "limits": {}, "cpus": [4_000]})
    words = [sys.executable, "-I", "-S", guardian.PROGRAM, options, "true"]
    done = subprocess.run(words, check=False, capture_output=True)
    assert "Invalid argument" in json.loads(done.stdout)["error"], done.stderr


def test_resources_are_limited():
    look = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU))"
    _, said = report(guarded(sys.executable, "-c", look, cpu=7))
    assert said == b"(7, 7)\n", "the hard one, too"


def test_the_command_is_killed_when_its_input_closes_without_another_word():
    tough = "import signal, time; signal.signal(15, lambda *_: exit(7)); print('ready', flush=True); time.sleep(600)"
    process = guarded(sys.executable, "-c", tough)
    assert process.stderr.readline() == b"ready\n"
    process.stdin.close()
    found = json.loads(process.stdout.read())
    process.wait(timeout=60)
    process.stdout.close()
    process.stderr.close()
    assert (found["status"], found["left"]) == (-signal.SIGKILL, 0)


def test_signals_do_not_make_it_leave_its_post():
    process = guarded(sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)")
    assert process.stderr.readline() == b"ready\n"
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(sig)
    (child,) = psutil.Process(process.pid).children()
    process.stdin.close()
    eventually(lambda: not alive(child.pid))
    process.wait(timeout=60)
    process.stdout.close()
    process.stderr.close()


def test_daemons_end_with_the_command(folder):
    process = guarded(sys.executable, SCRIPTS / "daemons.py", env={"NIGHTSHIFT_DATA": str(folder / "data")})
    pids = noted(folder / "data")
    os.kill(pids[0], signal.SIGKILL)
    found, _ = report(process)
    assert (found["status"], found["left"]) == (-signal.SIGKILL, 0)
    assert not any(alive(pid) for pid in pids)


def orchestrator(folder):
    """A process that runs the hostile script, and the ids of what it started."""
    command = [sys.executable, SCRIPTS / "one_run.py", folder, SCRIPTS / "daemons.py"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    pids = noted(folder / "runs/7-2/work/data")
    assert all(alive(pid) for pid in pids)
    return process, pids


def test_kill_9_of_the_orchestrator_leaves_no_process_not_even_a_suspended_one(folder):
    process, pids = orchestrator(folder)
    for suspended in (psutil.Process(pids[0]), psutil.Process(psutil.Process(pids[0]).ppid())):
        suspended.suspend()  # as are run and guardian by Ctrl-Z in another terminal
    process.kill()
    process.wait()
    eventually(lambda: not any(alive(pid) for pid in pids))
    eventually(lambda: not guardian.find_tagged(f"{folder.resolve()}/runs/"))


async def test_the_slot_is_free_only_when_the_run_is_gone(folder):
    process, pids = orchestrator(folder)
    with pytest.raises(MachineError, match="in use by another session"):
        async with hold_slot(Slot(folder / "slot.lock", patience=0.1)):
            pass
    process.kill()
    process.wait()
    async with hold_slot(Slot(folder / "slot.lock")):
        assert not any(alive(pid) for pid in pids)


async def test_a_run_that_kills_its_guardian_is_found_by_its_tag(folder):
    process, pids = orchestrator(folder)
    trainer = psutil.Process(pids[0])
    psutil.Process(trainer.ppid()).kill()
    assert process.wait(timeout=60) == 0
    left = [pid for pid in pids if alive(pid)]
    psutil.Process(pids[2]).kill()
    assert left == pids[2:]  # it has shed its name: only a sandbox holds that one


async def test_a_guardian_that_does_not_end_is_not_waited_for_without_end(folder):
    tag = f"{folder}/runs/7-1/"
    busy = """import os, time
os.fork()
print(os.getpid(), flush=True)
os.close(1)
time.sleep(600)
"""
    words = (sys.executable, "-c", busy)
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, env={guardian.TAG: tag})
    pids = [int(await process.stdout.readline()) for _ in range(2)]
    assert await _clean_up(process, tag, wakes=1) == 0
    assert process.returncode == -signal.SIGKILL
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_a_group_that_forks_without_end_is_ended_at_once():
    bomb = """import os, time
end = time.monotonic() + 120
for _ in range(6):
    if os.fork() == 0:
        while time.monotonic() < end:
            if os.fork(): os._exit(0)
        os._exit(0)
"""
    found, _ = report(guarded(sys.executable, "-I", "-S", "-c", bomb))
    assert (found["status"], found["left"]) == (0, 0)


ANOTHERS = """import asyncio, os, sys, time
from types import SimpleNamespace
from orchestrator.lab.guardian import _find_left
from orchestrator.lab.process import _wait
from subagents.cli_model import _Program
if not (child := os.fork()):
    os.setpgid(0, 0)
    os.closerange(0, 3)
    time.sleep(600)
while os.getpgid(child) != child: pass
async def end(): pass
os.setresuid(65534, 65534, 0)
try:
    asyncio.run(_wait(SimpleNamespace(pid=child, returncode=None, wait=end), 1))
    _Program.kill(SimpleNamespace(pid=child))
    print([process.pid for process in _find_left(child)] == [child])
finally:
    os.setresuid(0, 0, 0)
    os.killpg(child, 9)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_a_process_that_may_not_be_signalled_ends_neither_guardian_nor_night():
    """Such as a group of which only zombies are left on macOS, or a program that runs as another user."""
    done = subprocess.run([sys.executable, "-c", ANOTHERS], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True\n", done.stderr


def test_only_processes_with_the_tag_are_ended(folder):
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    ours = [subprocess.Popen(sleep, env={guardian.TAG: f"{folder}/runs/{n}-1/"}) for n in (7, 70)]
    others = subprocess.Popen(sleep, env={guardian.TAG: f"{folder}-other/runs/7-1/"})
    assert [p.pid for p in guardian.find_tagged(f"{folder}/runs/7-1/")] == [ours[0].pid]
    guardian.kill_all(lambda: [p for p in guardian.find_tagged(f"{folder}/runs/") if alive(p.pid)])
    assert [p.wait(timeout=60) for p in ours] == [-signal.SIGKILL, -signal.SIGKILL]
    assert others.poll() is None
    others.kill()
    others.wait()


async def test_a_slot_is_held_by_one_at_a_time(folder):
    slot, order = Slot(folder / "deep/slot.lock"), []

    async def use(name):
        async with hold_slot(slot):
            order.append(name)
            await asyncio.sleep(0)
            order.append(name)

    await asyncio.gather(*(use(name) for name in "abc"))
    assert order[::2] == order[1::2]
