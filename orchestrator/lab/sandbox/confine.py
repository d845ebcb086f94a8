"""Confine this process by Landlock and seccomp, then become the command. Needs no privilege.

Executed by path: `python -I -S confine.py OPTIONS COMMAND…`. OPTIONS is JSON: the paths to `read`, those below them to
`hide`, the paths to `write`, the devices to `use`, the seccomp `filter` in base64, and where to `tell` that it begins.
If any step fails, the process exits before the command starts.
"""

import base64
import ctypes
import json
import os
import signal
import struct
import sys
from collections.abc import Iterator

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 22, 24, 38, 47
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITIES_V3 = 0x2008_0522

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL = 1 << 14, 1 << 15
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
ALL_RIGHTS = (1 << 16) - 1
TCP = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
BEGUN = b"exit-code"  # what bwrap tells of no command that it has not begun
REQUIRED_ABI = 6  # first Landlock version that restricts signals, as of Linux 6.12


def main() -> None:
    options = json.loads(sys.argv[1])
    _check_call(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "die with the guardian")
    _drop_capabilities()
    _check_call(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    _restrict_files(options["read"], options["hide"], options["write"], options["use"])
    _filter_calls(base64.b64decode(options["filter"]))
    os.write(options["tell"], BEGUN)
    os.close(options["tell"])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - becoming the command is the point


def get_abi() -> int:
    """Return the kernel's Landlock version; 0 or less if there is none."""
    return LIBC.syscall(CREATE_RULESET, None, 0, 1)


def _drop_capabilities() -> None:
    """Drop all capabilities for good: with them root could read other processes' memory."""
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    LIBC.prctl(PR_CAP_AMBIENT, 4, 0, 0, 0)
    header, none = struct.pack("Ii", CAPABILITIES_V3, 0), bytes(24)
    done = LIBC.syscall(CAPSET[os.uname().machine], ctypes.c_char_p(header), ctypes.c_char_p(none))
    _check_call(done, "drop capabilities")


def _restrict_files(read: list[str], hide: list[str], write: list[str], use: list[str]) -> None:
    if get_abi() < REQUIRED_ABI:
        sys.exit(f"confine: Landlock {REQUIRED_ABI} is needed, this kernel has {max(get_abi(), 0)}")
    attributes = struct.pack("QQQ", ALL_RIGHTS, TCP, ABSTRACT_SOCKETS_AND_SIGNALS)
    rules = _check_call(LIBC.syscall(CREATE_RULESET, ctypes.c_char_p(attributes), len(attributes), 0), "create rules")
    for place in read:
        for beside, rights in _walk_around(hide, place):
            _allow(rules, beside, rights)
    for place in write:
        _allow(rules, place, ALL_RIGHTS & ~IOCTL)
    for place in use:
        _allow(rules, place, READ_FILE | WRITE_FILE | IOCTL)
    _check_call(LIBC.syscall(RESTRICT_SELF, rules, 0), "enforce the rules")
    os.close(rules)


def _walk_around(hide: list[str], place: str) -> Iterator[tuple[str, int]]:
    """Yield paths and rights for a place without what is hidden in it.

    Rules only add rights, so folders above a hidden path only show names. Links need no rule: their targets have one.
    """
    if not any(path.startswith(f"{place}/") for path in hide):
        yield place, EXECUTE | READ_FILE | READ_DIR
        return
    yield place, READ_DIR
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.path not in hide and not entry.is_symlink():
                yield from _walk_around(hide, entry.path)


def _allow(rules: int, place: str, rights: int) -> None:
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    rights &= ALL_RIGHTS if os.path.isdir(place) else FILE_RIGHTS  # noqa: PTH112 - pathlib costs 5 ms
    rule = struct.pack("=Qi", rights, descriptor)
    _check_call(LIBC.syscall(ADD_RULE, rules, 1, ctypes.c_char_p(rule), 0), place)
    os.close(descriptor)


def _filter_calls(code: bytes) -> None:
    lines = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(lines))
    _check_call(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0), "filter system calls")


def _check_call(result: int, what: str) -> int:
    if result < 0:
        sys.exit(f"confine: cannot {what}: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main()
