"""Build the filter of system calls that every sandbox applies, in classic BPF, from the table calls.txt.

What the table does not allow is refused. It holds no call whose effects outlive a run (keys, shared memory, times,
modes and marks of files), which could carry validation data to the next. Numbers are from the kernel's tables for
x86-64 and arm64; `python -m benchmarks calls` traces what honest code uses.
"""

import platform
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

Grants = Literal["model", "run", "task"]
"""What a command may do: evaluate a model on a CPU, train on a CPU, or run the user's own program or any on a GPU."""
TABLE = Path(__file__).with_name("calls.txt")
LEVELS: tuple[Grants, ...] = ("model", "run", "task")
"""Each may do what those before it may."""
ALLOW, REFUSE, KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
EPERM, ENOTTY, EROFS, ENOSYS, SILENTLY = 1, 25, 30, 38, 0
ANSWERS = {"absent": REFUSE | ENOSYS, "silent": REFUSE | SILENTLY}
"""What the table refuses in a way of its own. Absent calls seem to be missing, so that libraries fall back to others:
they tell what the page cache holds. Silent ones do nothing, since compilers and `shutil.copy` fail if they fail."""
UNIFORM = 424
"""Number from which on calls have one number everywhere, and libraries know that older kernels lack them."""
NEW_USER, THREAD = 0x1000_0000, 0x1_0000
"""Flags of clone: for a user namespace, which would grant new capabilities, and for a thread."""
WRITING = 0o1103
"""Flags of open: to write, to create, to truncate."""

_MACHINES = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCH = (0xC000_003E, 0xC000_00B7)
_OWN = {
    **dict.fromkeys(("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity"), (0,)),
    "setpriority": (0, 1),
}
"""Calls that may concern the caller alone, for which these arguments are 0: a run could starve or end its guardian."""
_FAMILIES = (1, 2, 10, 16)
"""Sockets that belong to a network namespace: local, IPv4, IPv6, netlink. Those of a virtual machine do not."""
_MARKS, _LOCKS = (1024, 1026, 1036, 1038), (5, 6, 7, 36, 37, 38)
"""Commands of fcntl that watch or mark an open file, be it read-only: later runs see a mark. Locks end with their
process."""
_SIGCHLD = (17,)
"""The kernel forgets the CPU time of a child whose end its parent ignores. Handlers of this signal are not needed."""
_OF_FILES, _KIND = (0x5800, 0x6600, 0x7600, 0x9400), 0xFF00
"""Kinds of commands of ioctl that belong to file systems: flags and versions of files outlive a run."""

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the kernel's `struct seccomp_data`."""
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
Line = tuple[int, int, int, int]
"""Operation, instructions to skip if a test is true and if it is false, operand."""


@cache
def list_calls(machine: str) -> dict[str, tuple[int, str]]:
    """Return the table of an architecture: number and grants by name. Raises KeyError for an unknown one."""
    column = _MACHINES[machine]
    lines = (line.split() for line in TABLE.read_text().splitlines() if line[0] != "#")
    entries = [(grants, *entry.split("/")) for grants, *entries in lines for entry in entries]
    return {name: (int(numbers[column]), grants) for grants, name, *numbers in entries if numbers[column] != "-"}


def build_filter(*, sockets: bool, grants: Grants = "task", machine: str = "") -> bytes:
    """Return the filter as bytes; `sockets` allows creating them. Raises KeyError for an unknown architecture."""
    machine = machine or platform.machine()
    column, calls = _MACHINES[machine], list_calls(machine)
    answers = ANSWERS | dict.fromkeys(LEVELS[: LEVELS.index(grants) + 1], ALLOW)
    known = {number: answers[word] for number, word in calls.values() if word in answers}
    for name in () if sockets else ("socket", "bind"):
        known.pop(calls[name][0], None)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT_ARCH[column]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_check_arguments({name: number for name, (number, _) in calls.items()}, grants),
        *(line for number, answer in known.items() for line in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer))),
        (_AT_LEAST, 0, 1, UNIFORM),
        (_RETURN, 0, 0, REFUSE | ENOSYS),
        (_RETURN, 0, 0, REFUSE | EPERM),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _check_arguments(numbers: dict[str, int], grants: Grants) -> Iterator[Line]:
    """Yield the lines that refuse allowed calls with arguments that are not."""
    for name, arguments in _OWN.items():
        for argument in arguments:
            yield from _check_argument(numbers[name], argument, (0,), EPERM, allowed=True)
    yield from _check_argument(numbers["socket"], 0, _FAMILIES, EPERM, allowed=True)
    yield from _check_argument(numbers["fcntl"], 1, _MARKS, SILENTLY)
    yield from _check_argument(numbers["ioctl"], 1, _OF_FILES, ENOTTY, mask=_KIND)
    yield from _check_argument(numbers["clone"], 0, (NEW_USER,), EPERM, mask=NEW_USER)
    if grants != "task":
        yield from _check_argument(numbers["rt_sigaction"], 0, _SIGCHLD, SILENTLY)
    if grants == "model":
        yield from _check_argument(numbers["clone"], 0, (THREAD,), EPERM, mask=THREAD, allowed=True)
        yield from _check_argument(numbers["fcntl"], 1, _LOCKS, EPERM)
        for place, name in enumerate(("open", "openat"), 1):
            if name in numbers:
                yield from _check_argument(numbers[name], place, (0,), EROFS, mask=WRITING, allowed=True)


def _check_argument(
    number: int, argument: int, values: tuple[int, ...], error: int, *, mask: int = 0xFFFF_FFFF, allowed: bool = False
) -> Iterator[Line]:
    """Yield the lines that refuse a call if the low half of this argument is among the values, or if it is not."""
    count = len(values)
    yield (_EQUAL, 0, count + 4, number)
    yield (_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * argument)
    yield (_AND, 0, 0, mask)
    for left, value in zip(reversed(range(count)), values, strict=True):
        yield (_EQUAL, left + allowed, int(not allowed and left == 0), value)
    yield (_RETURN, 0, 0, REFUSE | error)
    yield (_LOAD, 0, 0, _NUMBER)
