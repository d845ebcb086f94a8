"""Build the filter of system calls that every sandbox applies, in classic BPF, from the table calls.txt.

What the table does not allow, by name and arguments, is refused. It holds no call whose effects outlive a run (keys,
shared memory, times, modes and marks of files), which could carry validation data to the next. Numbers are from the
kernel's tables for x86-64 and arm64; `python -m benchmarks calls` traces what honest code uses.
"""

import errno
import platform
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

Grants = Literal["model", "run", "task", "own"]
"""What a command may do: evaluate a model on a CPU, train on a CPU, run the user's own program or any on a GPU; and,
for the user's own where it can change the mode of no file that outlives it, make files executable, as linkers do."""
TABLE = Path(__file__).with_name("calls.txt")
LEVELS: tuple[Grants, ...] = ("model", "run", "task", "own")  # each may do what those before it may
ALLOW, REFUSE, KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
ANSWERS = {"absent": REFUSE | errno.ENOSYS, "silent": REFUSE, "own": REFUSE}
"""What the table refuses in a way of its own. Absent calls seem to be missing, so that libraries fall back to others:
they tell what the page cache holds. Silent ones do nothing, since compilers and `shutil.copy` fail if they fail."""
UNIFORM = 424
"""Number from which on calls have one number everywhere, and libraries know that older kernels lack them."""

_MACHINES = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCH = (0xC000_003E, 0xC000_00B7)

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in the kernel's `struct seccomp_data`
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
Line = tuple[int, int, int, int]
"""Operation, instructions to skip if a test is true and if it is false, operand."""


@cache
def list_calls(machine: str) -> dict[str, tuple[int, str]]:
    """Return the table of an architecture: number and grants by name. Raises KeyError for an unknown one."""
    column = _MACHINES[machine]
    lines = (line.split() for line in TABLE.read_text().splitlines() if line[0] != "#")
    entries = [(grants, *entry.split("/")) for grants, *entries in lines if grants != "check" for entry in entries]
    return {name: (int(numbers[column]), grants) for grants, name, *numbers in entries if numbers[column] != "-"}


def build_filter(*, sockets: bool, grants: Grants = "task", machine: str = "") -> bytes:
    """Return the filter as bytes; `sockets` allows creating them. Raises KeyError for an unknown architecture."""
    machine = machine or platform.machine()
    column, calls = _MACHINES[machine], list_calls(machine)
    answers = ANSWERS | dict.fromkeys(LEVELS[: LEVELS.index(grants) + 1], ALLOW)
    known = {number: answers[word] for number, word in calls.values() if word in answers}
    for name in () if sockets else ("socket", "bind", "connect"):
        known.pop(calls[name][0], None)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT_ARCH[column]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_check_arguments({name: number for name, (number, _) in calls.items()}, grants),
        *(line for number, answer in known.items() for line in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer))),
        (_AT_LEAST, 0, 1, UNIFORM),
        (_RETURN, 0, 0, REFUSE | errno.ENOSYS),
        (_RETURN, 0, 0, REFUSE | errno.EPERM),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _check_arguments(numbers: Mapping[str, int], grants: Grants) -> Iterator[Line]:
    """Yield the lines that refuse allowed calls by the low half of an argument, as the table says."""
    checks = (line.split() for line in TABLE.read_text().splitlines() if line.startswith("check "))
    for _, most, name, argument, mask, rule, error, *values in checks:
        if name not in numbers or most not in LEVELS[LEVELS.index(grants) :]:
            continue
        count, allowed = len(values), rule == "only"
        yield (_EQUAL, 0, count + 4, numbers[name])
        yield (_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * int(argument))
        yield (_AND, 0, 0, int(mask, 0))
        for left, value in zip(reversed(range(count)), values, strict=True):
            yield (_EQUAL, left + allowed, int(not allowed and left == 0), int(value, 0))
        yield (_RETURN, 0, 0, REFUSE | (0 if error == "silent" else getattr(errno, error)))
        yield (_LOAD, 0, 0, _NUMBER)
