"""Build the filter of system calls that every sandbox applies, in classic BPF.

It refuses what training code does not need, and calls whose effects outlive a run (keys, shared memory, times, modes
and marks of files), which could carry validation data to the next. Numbers are from the kernel's tables for x86-64
and arm64.
"""

import platform
import struct
from collections.abc import Iterator

ALLOW, REFUSE, KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
EPERM, ENOTTY, ENOSYS, SILENTLY = 1, 25, 38, 0
NEW_USER = 0x1000_0000
"""Flag of clone for a user namespace, which would grant new capabilities."""

_MACHINES = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCH = (0xC000_003E, 0xC000_00B7)
_X32 = 0x4000_0000
_SOCKET, _BIND, _CLONE = (41, 198), (49, 200), (56, 220)
# fmt: off
_REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "kexec_load": (246, 104), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "setxattrat": (463, 463), "removexattrat": (466, 466),
    "file_setattr": (469, 469), "kcmp": (312, 272), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "ioprio_set": (251, 30), "inotify_init": (253, 26),
    "inotify_init1": (294, 26), "fanotify_init": (300, 262),
}
_ABSENT = {
    "clone3": (435, 435), "preadv2": (327, 286), "mincore": (27, 232), "cachestat": (451, 451), "io_setup": (206, 0),
}
"""Calls that seem to be missing, so that libraries fall back to others: a filter cannot read the flags of clone3, and
the others tell what the page cache holds."""
_OWN = {
    "prlimit64": ((302, 261), (0,)), "sched_setparam": ((142, 118), (0,)), "sched_setscheduler": ((144, 119), (0,)),
    "sched_setattr": ((314, 274), (0,)), "sched_setaffinity": ((203, 122), (0,)), "setpriority": ((141, 140), (0, 1)),
}
"""Calls that may concern the caller alone, for which these arguments are 0: a run could starve or end its guardian."""
_FAMILIES = (1, 2, 10, 16)
"""Sockets that belong to a network namespace: local, IPv4, IPv6, netlink. Those of a virtual machine do not."""
_FCNTL, _MARKS = (72, 25), (1024, 1026, 1036, 1038)
"""Commands that watch or mark an open file, be it read-only: later runs see a mark. Locks end with their process."""
_SIGACTION, _SIGCHLD = (13, 134), (17,)
"""The kernel forgets the CPU time of a child whose end its parent ignores. Handlers of this signal are not needed."""
_IOCTL, _OF_FILES, _KIND = (16, 29), (0x5800, 0x6600, 0x7600, 0x9400), 0xFF00
"""Kinds of commands that belong to file systems: flags and versions of files outlive a run."""
_WITHOUT_EFFECT = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "fadvise64": (221, 223),
}
# fmt: on
"""Compilers and `shutil.copy` fail if these fail, so they return success and do nothing."""

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the kernel's `struct seccomp_data`."""
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06


def build_filter(*, sockets: bool, counted: bool = False, machine: str = "") -> bytes:
    """Return the filter as bytes; `sockets` allows creating them, `counted` keeps the CPU time of all children.

    Raises KeyError for an unknown architecture.
    """
    column = _MACHINES[machine or platform.machine()]
    rules = [(numbers[column], ENOSYS) for numbers in _ABSENT.values()]
    rules += [(numbers[column], EPERM) for numbers in _REFUSED.values()]
    rules += [(number, SILENTLY) for numbers in _WITHOUT_EFFECT.values() if (number := numbers[column]) is not None]
    if not sockets:
        rules += [(_SOCKET[column], EPERM), (_BIND[column], EPERM)]
    # Operation, instructions to skip if a test is true and if it is false, operand.
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT_ARCH[column]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, REFUSE | EPERM),
        *(line for number, error in rules for line in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, REFUSE | error))),
        *(
            line
            for numbers, arguments in _OWN.values()
            for argument in arguments
            for line in _check_argument(numbers[column], argument, (0,), EPERM, allowed=True)
        ),
        *_check_argument(_SOCKET[column], 0, _FAMILIES, EPERM, allowed=True),
        *(_check_argument(_SIGACTION[column], 0, _SIGCHLD, SILENTLY) if counted else ()),
        *_check_argument(_FCNTL[column], 1, _MARKS, SILENTLY),
        *_check_argument(_IOCTL[column], 1, _OF_FILES, ENOTTY, mask=_KIND),
        (_EQUAL, 0, 3, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, NEW_USER),
        (_RETURN, 0, 0, REFUSE | EPERM),
        (_RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _check_argument(
    number: int, argument: int, values: tuple[int, ...], error: int, *, mask: int = 0xFFFF_FFFF, allowed: bool = False
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the lines that refuse a call if the low half of this argument is among the values, or if it is not."""
    count = len(values)
    yield (_EQUAL, 0, count + 4, number)
    yield (_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * argument)
    yield (_AND, 0, 0, mask)
    for left, value in zip(reversed(range(count)), values, strict=True):
        yield (_EQUAL, left + allowed, int(not allowed and left == 0), value)
    yield (_RETURN, 0, 0, REFUSE | error)
    yield (_LOAD, 0, 0, _NUMBER)
