"""Run a command so that none of its processes outlives it, nor the orchestrator that started this guardian.

Executed by path: `python -I -S guardian.py OPTIONS COMMAND…`. It adopts orphaned processes of the command, and kills
all of them when the command ends or standard input closes. Standard error carries the command's output, standard output
the report: one line of JSON.
"""

import ctypes
import json
import os
import resource
import select
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING or __name__ != "__main__":  # every run waits for these imports, and few leave anything to kill
    import psutil

PROGRAM = __file__
TAG = "NIGHTSHIFT_RUN"
"""Environment variable that marks a run's processes, to find them even if the guardian dies."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
KEYCTL, JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1
"""A keyring of its own instead of the user's session keyring."""
TICK = 0.02  # seconds between two checks for the command's end
KILL_PATIENCE = 50.0  # seconds to wait for killed processes; what is left after that is stuck in the kernel
LOOKS = 3  # a process that forks and ends in the middle of a look can be missed by it
REAPED = 10_000  # most ends that are collected before a look, since what forks and ends goes on meanwhile


def main() -> None:
    """Run the command, and report how it ended once none of its processes is left."""
    options = json.loads(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)  # a suspended guardian has work to do then
        ctypes.CDLL(None).syscall(KEYCTL.get(os.uname().machine, -1), JOIN_SESSION_KEYRING, None)
    try:
        if options.get("cpus"):
            os.sched_setaffinity(0, options["cpus"])
        for name, value in options["limits"].items():
            which = getattr(resource, f"RLIMIT_{name}")
            _, hard = resource.getrlimit(which)
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (limit, limit))  # the hard one, too, up to which the command could raise it
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # A handler, since an ignored signal would stay ignored in the command.
            signal.signal(number, lambda _number, _frame: None)
        child = subprocess.Popen(
            sys.argv[2:], stdin=subprocess.DEVNULL, stdout=2, stderr=2, pass_fds=options["fds"], process_group=0
        )
    except (OSError, ValueError) as error:
        _report(error=str(error))
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for descriptor in options["fds"]:
        os.close(descriptor)
    while child.returncode is None and not select.select([0], [], [], TICK)[0]:  # readable: the orchestrator closed it
        _reap(child)
    left = 0
    if _reap(child):
        global psutil  # noqa: PLW0603
        site.main()  # where it is
        import psutil

        left = len(kill_all(lambda: _find_left(child.pid) if _reap(child) else []))
    status = -signal.SIGKILL if child.returncode is None else child.returncode
    scale, used = 1 << 20 if sys.platform == "darwin" else 1 << 10, resource.getrusage(resource.RUSAGE_CHILDREN)
    _report(status=status, peak_mb=used.ru_maxrss / scale, cpu=used.ru_utime + used.ru_stime, left=left)


def find_tagged(prefix: str) -> "list[psutil.Process]":
    """Return the processes whose tag begins with `prefix`."""
    found = ((process, dict[str, str](process.info["environ"] or ())) for process in psutil.process_iter(["environ"]))
    return [process for process, env in found if process.pid != os.getpid() and env.get(TAG, "").startswith(prefix)]


def kill_all(alive: Callable[[], "list[psutil.Process]"]) -> "list[psutil.Process]":
    """Kill until LOOKS in a row find none alive, for KILL_PATIENCE seconds at most; return the survivors."""
    deadline, looks = time.monotonic() + KILL_PATIENCE, 0
    processes = list[psutil.Process]()
    while looks < LOOKS and time.monotonic() < deadline:
        processes = alive()
        looks = 0 if processes else looks + 1
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.01)
    return processes


def _find_left(group: int) -> "list[psutil.Process]":
    """Return all below this process, and kill the command's group at once: one by one, they could fork meanwhile."""
    found = psutil.Process().children(recursive=True)
    for process in found:
        with suppress(OSError):  # gone, another user's, or on macOS only zombies
            if os.getpgid(process.pid) == group:  # otherwise its number may be another's
                os.killpg(group, signal.SIGKILL)
                break
    return found


def _reap(child: "subprocess.Popen[bytes]") -> bool:
    """Collect exit codes of the child and of adopted processes; return whether any process is left."""
    with suppress(ChildProcessError):
        for _ in range(REAPED):
            number, status = os.waitpid(-1, os.WNOHANG)
            if number == child.pid:
                child.returncode = os.waitstatus_to_exitcode(status)
            if not number:
                break
        return True
    return False


def _report(**fields: object) -> None:
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(fields).encode())


if __name__ == "__main__":
    main()
