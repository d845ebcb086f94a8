"""A sandbox is used for what it prevents, and nothing is trained where none prevents enough."""

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.lab.sandbox import confine, seccomp, select
from orchestrator.lab.sandbox.base import TRUSTED, Command, NoSandbox, list_hidden
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.sandbox.landlock import Landlock
from prepare.corpus import compute_digest, docstrings


class Missing:
    tier = "missing"

    def wrap(self, command):
        return Command(("/no/such/program",), command.env, command.folder, command.fds)


class Prison:
    """Lets nothing through, not even work."""

    tier = "prison"

    def wrap(self, command):
        return Command(("false",), command.env, command.folder, command.fds)


def test_no_sandbox_prevents_nothing():
    found = select.self_check(NoSandbox())
    for deed in (
        "read outside",
        "read held-out text",
        "connect",
        "read other processes",
        "leave something in memory",
    ):
        assert f"it can {deed}" in found


def test_the_first_that_holds_is_chosen():
    try:
        chosen = select.select_sandbox([Missing(), Prison(), NoSandbox(), Bubblewrap(), Landlock()])
    except select.NoSandboxError as reason:
        pytest.skip(str(reason))
    assert chosen.tier in {"bubblewrap", "landlock"}


def test_where_none_holds_the_user_is_told_why_and_what_to_do():
    with pytest.raises(select.NoSandboxError) as told:
        select.select_sandbox([Missing(), Prison(), NoSandbox()])
    words = str(told.value)
    assert "missing: /no/such/program is not installed" in words
    assert "prison: it does not start" in words
    assert "none: it can read outside" in words
    assert "--unsafe" in words
    assert "\n" not in words


def test_without_shared_memory_nothing_is_compiled_by_a_pool(tmp_path):
    (tmp_path / "tmp").mkdir()
    assert Landlock().wrap(Command((), {}, tmp_path, ())).env["TORCHINDUCTOR_COMPILE_THREADS"] == "1"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("sockets", [True, False])
@pytest.mark.parametrize("grants", seccomp.LEVELS)
def test_a_filter_never_jumps_out_of_itself_and_refuses_at_its_end(machine, sockets, grants):
    code = seccomp.build_filter(sockets=sockets, grants=grants, machine=machine)
    lines = [struct.unpack("HBBI", code[i : i + 8]) for i in range(0, len(code), 8)]
    assert lines[-1] == (0x06, 0, 0, seccomp.REFUSE | errno.EPERM)
    assert len(lines) <= 4096, "the kernel takes no more"
    for place, (what, yes, no, _) in enumerate(lines):
        if what & 7 == 5:
            assert place + 1 + max(yes, no) < len(lines)


def test_a_check_in_the_table_names_a_call_and_who_may_use_it():
    checks = [line.split() for line in seccomp.TABLE.read_text().splitlines() if line.startswith("check")]
    assert len(checks) > 9
    assert {words[2] for words in checks} <= seccomp.list_calls("x86_64").keys()
    assert {(words[1] in seccomp.LEVELS, words[5] in ("only", "never")) for words in checks} == {(True, True)}


def run(code, call, machine="x86_64", argument=0, second=0, third=0):
    """A tiny machine for filters: what the kernel would answer to that call."""
    lines = [struct.unpack("HBBI", code[i : i + 8]) for i in range(0, len(code), 8)]
    seen = {0: call, 4: 0xC000003E if machine == "x86_64" else 0xC00000B7, 16: argument, 24: second, 32: third}
    place = value = 0
    while True:
        what, yes, no, number = lines[place]
        place += 1
        match what:
            case 0x20:
                value = seen[number]
            case 0x54:
                value &= number
            case 0x15:
                place += yes if value == number else no
            case 0x35:
                place += yes if value >= number else no
            case 0x45:
                place += yes if value & number else no
            case 0x06:
                return number


def test_what_the_filter_says():
    code = seccomp.build_filter(sockets=False, machine="x86_64")
    refuse = seccomp.REFUSE
    assert run(code, 0) == seccomp.ALLOW  # read
    assert run(code, 101) == refuse | errno.EPERM  # ptrace
    assert [run(code, call) for call in (41, 42, 49)] == [refuse | errno.EPERM] * 3  # socket, connect, bind
    pairs = ((1, 0x80001), (1, 0x80002), (1, 5), (2, 1))  # for streams, datagrams and packets; not local
    found = [run(code, 53, argument=family, second=kind) == seccomp.ALLOW for family, kind in pairs]
    assert found == [1, 0, 0, 0]
    assert {run(code, call) for call in (*range(29, 32), *range(64, 72))} == {refuse | errno.EPERM}  # memory of others
    assert run(code, 91) == refuse  # fchmod
    assert run(code, 435) == refuse | errno.ENOSYS  # clone3
    assert run(code, 56, argument=0x11) == seccomp.ALLOW  # clone: a process
    assert run(code, 56, argument=0x1000_0000 | 0x11) == refuse | errno.EPERM
    assert run(code, 0x4000_0000 + 41) == refuse | errno.ENOSYS  # the same by another name is in no table
    assert run(code, 0, machine="aarch64") == seccomp.KILL
    assert run(code, 141, argument=0, second=0) == seccomp.ALLOW  # setpriority: its own
    assert run(code, 141, argument=2, second=0) == refuse | errno.EPERM  # of all processes of the user
    assert run(code, 203, argument=99) == refuse | errno.EPERM  # sched_setaffinity of another process
    assert [run(code, 72, second=word) == seccomp.ALLOW for word in (1, 6, 37, 1030, 1036)] == [1, 1, 1, 1, 0]  # fcntl
    assert [run(code, 16, second=word) for word in (0x5421, 0x40086602)] == [seccomp.ALLOW, refuse | errno.ENOTTY]
    assert run(code, 13, argument=17) == seccomp.ALLOW  # rt_sigaction of SIGCHLD
    code = seccomp.build_filter(sockets=True, grants="own", machine="x86_64")
    assert [run(code, 90, second=mode) == seccomp.ALLOW for mode in (0o755, 0, 0o4755, 0o2755)] == [1, 1, 0, 0]  # chmod
    assert [run(code, 268, third=mode) == seccomp.ALLOW for mode in (0o755, 0o6755)] == [1, 0]  # fchmodat
    assert run(code, 92) == refuse  # chown
    assert run(code, 203, argument=99) == refuse | errno.EPERM, "what a task may not, it may not either"
    code = seccomp.build_filter(sockets=True, grants="run", machine="x86_64")
    assert [run(code, 13, argument=number) == seccomp.ALLOW for number in (15, 17, 18)] == [1, 0, 1]
    assert [run(code, 41, argument=family) == seccomp.ALLOW for family in (1, 2, 10, 16, 40)] == [1, 1, 1, 1, 0]
    assert run(code, 57) == seccomp.ALLOW  # fork
    assert run(code, 203) == refuse  # sched_setaffinity: it keeps the cores that it was given
    assert run(code, 319) == run(code, 335) == refuse | errno.EPERM  # memfd_create, and a number of no call
    assert run(code, 470) == refuse | errno.ENOSYS  # newer than the table


def test_what_evaluates_a_model_starts_threads_and_reads():
    code, refuse = seccomp.build_filter(sockets=True, grants="model", machine="x86_64"), seccomp.REFUSE
    assert run(code, 56, argument=0x3D0F00) == seccomp.ALLOW  # clone: a thread
    assert run(code, 56, argument=0x11) == refuse | errno.EPERM  # a process
    assert run(code, 57) == run(code, 58) == run(code, 41) == run(code, 53) == refuse | errno.EPERM
    assert run(code, 99) == refuse | errno.EPERM  # sysinfo: the load and the memory that others use
    assert run(code, 257, third=0o2000000) == seccomp.ALLOW  # openat, to read
    assert [run(code, 257, third=flags) for flags in (1, 2, 0o100, 0o1000)] == [refuse | errno.EROFS] * 4
    assert [run(code, 72, second=word) == seccomp.ALLOW for word in (1, 3, 6, 37)] == [1, 1, 0, 0]  # fcntl


def test_little_is_readable():
    shown = {str(place) for place in Command((), {}, Path(), (), grants="run").list_readable()}
    assert f"{sys.prefix}/lib" in shown
    assert not shown & {"/", "/home", "/root", "/etc", "/tmp", "/var", "/proc", "/dev", "/usr", sys.prefix}
    assert "/usr" in {str(place) for place in Command((), {}, Path(), ()).list_readable()}, "a task of the user's own"


def test_what_counts_is_not_shown_to_what_evaluates_a_model():
    model, run = (
        {str(path) for path in Command((), {}, Path(), (), grants=grants).list_facts()} for grants in ("model", "run")
    )
    assert "/proc/cpuinfo" in model
    assert not run & {"/proc/stat", "/proc/sys", "/proc/vmstat", "/sys", "/proc/diskstats"}
    assert run - model == {"/proc/meminfo"}


def test_no_source_of_what_scores_are_measured_on_is_shown():
    folders = [folder for name in docstrings.HELD_OUT if (folder := docstrings.find_package(name))]
    assert folders
    assert {folder.resolve() for folder in folders} <= list_hidden()


SEARCH = """
import json, os, sys
from pathlib import Path
from prepare.corpus import compute_digest
from prepare.corpus.docstrings import extract_documentation
lines, digests = (set(words) for words in json.loads(Path("secrets.json").read_text()))
read, found = 0, []
for folder, _, files in os.walk(sys.prefix):
    for name in files:
        if name.endswith(".py"):
            path = Path(folder, name)
            try:
                text = path.read_text("utf-8", "replace")
            except OSError:
                continue
            read += 1
            if not lines.isdisjoint(line.strip(" \\t\\r\\"'") for line in text.split("\\n")):
                text = "\\n\\n".join(extract_documentation(path))
                found += [str(path)] * (compute_digest(text).hex() in digests)
print(json.dumps([read, found]))
"""


def find_key(path, text):
    """A line of a document that stands in its source as it is: only a file with this line can hold the document."""
    own, shown = ([line.strip(" \t\r\"'") for line in t.split("\n")] for t in (text, path.read_text("utf-8")))
    return max(set(own).intersection(shown), key=len)


@pytest.fixture(scope="module")
def exam():
    """Each held-out document: a line to find it by, and its digest."""
    files = [path for name in docstrings.HELD_OUT for path in docstrings.list_sources(docstrings.find_package(name))]
    texts = ((path, "\n\n".join(docstrings.extract_documentation(path))) for path in files)
    # "Generated protocol buffer code." is everywhere
    return [(find_key(path, text), compute_digest(text).hex()) for path, text in texts if len(text) > 99]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sandbox", [Bubblewrap(), Landlock()], ids=lambda sandbox: sandbox.tier)
def test_no_document_of_an_exam_is_in_a_file_that_training_code_can_read(sandbox, exam, tmp_path):
    if weakness := select.self_check(sandbox):
        pytest.skip(weakness)
    assert min(len(line) for line, _ in exam) > 9
    (tmp_path / "tmp").mkdir()
    (tmp_path / "secrets.json").write_text(json.dumps(list(zip(*exam, strict=True))))
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(TRUSTED.parent)}
    command = sandbox.wrap(Command((sys.executable, "-c", SEARCH), env, tmp_path, ()))
    done = subprocess.run(
        command.argv, env=command.env, cwd=tmp_path, pass_fds=command.fds, capture_output=True, check=True
    )
    read, found = json.loads(done.stdout)
    assert read > 5000
    assert found == []


@pytest.mark.parametrize("folders", [15, 150])
def test_thousands_of_files_fit_into_a_command(tmp_path, folders):
    """bwrap takes 9,000 words."""
    for number in range(3_000):
        folder = tmp_path / f"{number % folders}" / "deeper"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").touch()
    command = Bubblewrap().wrap(Command(("true",), {}, tmp_path, (), protected=[tmp_path / "0/deeper/0"]))
    for descriptor in (*command.fds, *command.reports):
        os.close(descriptor)
    assert len(command.argv) < 9_000
    assert {str(tmp_path / f"{number}") for number in range(folders)} <= {*command.argv}


def test_landlock_shows_everything_beside_what_is_hidden(tmp_path):
    for name in ("lib/site-packages/hush/a", "lib/site-packages/torch/b", "lib/c", "bin/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lib64").symlink_to("lib")
    rules = dict(confine._walk_around([f"{tmp_path}/lib/site-packages/hush"], str(tmp_path)))

    whole = {path.removeprefix(f"{tmp_path}/") for path, rights in rules.items() if rights & confine.READ_FILE}
    names = {path for path, rights in rules.items() if rights == confine.READ_DIR}
    assert whole == {"lib/site-packages/torch", "lib/c", "bin"}
    assert names == {str(tmp_path), f"{tmp_path}/lib", f"{tmp_path}/lib/site-packages"}


def test_the_launcher_needs_nothing_but_the_standard_library():
    text = Path(confine.__file__).read_text()
    assert "import orchestrator" not in text
    assert "from orchestrator" not in text
