"""Processes that are spared their imports: a server that has them forks, once for each command or script.

What a command does, prints and leaves is that of a process which a user starts; only the start of Python is missing,
for which `begun` in tests/workplace.py starts a whole one.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import socket
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 200
COMMAND = ("orchestrator.cli.start", "orchestrator.cli.doctor", "orchestrator.views.observers", "subagents.claude")
TRAINING = ("torch", "torch._dynamo", "numpy", "cloudpickle", "pydantic")
"""The second is what counting a step imports, and takes longest. Not `prepare`, which reads the environment."""


def run(words: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of Nightshift to its end, in the folder."""
    return _fork(_connect(COMMAND), [str(ROOT / "orchestrator/__main__.py"), *words], folder, env)


def run_script(name: str, folder: Path, env: Mapping[str, str], given: int) -> subprocess.CompletedProcess[str]:
    """Run a training script; it gets the descriptor `given` as $NIGHTSHIFT_FD."""
    return _fork(_connect(TRAINING, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive"), [name], folder, env, given)


def _fork(
    server: socket.socket, words: Sequence[str], folder: Path, env: Mapping[str, str], *given: int
) -> subprocess.CompletedProcess[str]:
    request = json.dumps([words, str(folder), dict(env)]).encode()
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        try:
            socket.send_fds(server, [len(request).to_bytes(4)], [stdout.fileno(), stderr.fileno(), *given])
            server.sendall(request)
            answer = server.recv(4, socket.MSG_WAITALL)
            assert len(answer) == 4, f"{words}: the server of preloaded processes has ended"
        except BaseException as error:
            _connect.cache_clear()  # its answer may come later, and is not that to the next request
            server.close()
            if not isinstance(error, TimeoutError):
                raise
            printed = [file.seek(0) or file.read().decode(errors="replace") for file in (stdout, stderr)]
            raise AssertionError("\n".join([f"{words}: no end in {PATIENCE} s", *printed])) from error
        code = int.from_bytes(answer, signed=True)
        printed = [file.seek(0) or file.read().decode() for file in (stdout, stderr)]
    return subprocess.CompletedProcess(words, code, *printed)


@cache
def _connect(modules: Sequence[str], **values: str) -> socket.socket:
    """Start a server that has the modules; it ends with this process."""
    ours, theirs = socket.socketpair()
    with theirs:
        words = [sys.executable, "-m", "tests.preloaded", str(theirs.fileno()), *modules]
        env = os.environ | {"PYTHONPATH": str(ROOT)} | values
        subprocess.Popen(words, pass_fds=[theirs.fileno()], cwd=ROOT, env=env, stdin=subprocess.DEVNULL)
    ours.settimeout(PATIENCE)
    return ours


def serve(client: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]]:
    """Fork for each request, and answer with the exit code; return the request in the forked process."""
    while True:
        size, files, _, _ = socket.recv_fds(client, 4, 3)
        if not size:
            os._exit(0)
        request = json.loads(client.recv(int.from_bytes(size), socket.MSG_WAITALL))
        if not (child := os.fork()):
            client.close()
            return *request, files
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))


def become(folder: str, env: dict[str, str], files: list[int]) -> None:
    """Be a process that has just started."""
    for descriptor, name, file in zip((1, 2), ("stdout", "stderr"), files, strict=False):
        os.dup2(file, descriptor)
        os.close(file)
        stream = open(descriptor, "w", 1, "utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    if files[2:]:
        os.environ["NIGHTSHIFT_FD"] = str(files[2])


def warm_up() -> None:
    """Do what every command does the same: find the packages to hide, and compile the templates."""
    from orchestrator.lab.sandbox.base import list_hidden
    from orchestrator.views.render import TEMPLATES

    list_hidden()
    for name in TEMPLATES.list_templates(extensions=("html", "md", "txt")):
        TEMPLATES.get_template(name)


def run_program(modules: list[str], script: str, folder: str) -> int:
    """Run the command, or the script, as if it were this process's own, and return the exit code."""
    try:
        if modules == [*COMMAND]:
            sys.modules["__main__"] = program = importlib.import_module("orchestrator.__main__")
            program.main()
        else:
            sys.path[0] = folder
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return int(isinstance(end.code, str) or end.code or 0)
    except BaseException:  # noqa: BLE001 - as the interpreter does it
        traceback.print_exc()
        return 1
    return 0


def finish(code: int) -> None:
    """End like the interpreter, except that it takes no module apart, which takes longer than most commands."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for thing in gc.get_objects():
        if isinstance(thing, sqlite3.Connection):
            thing.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    descriptor, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    if modules == [*COMMAND]:
        warm_up()
    gc.freeze()
    (program, *words), folder, env, files = serve(socket.socket(fileno=int(descriptor)))
    become(folder, env, files)
    sys.argv[:] = [program, *words]
    finish(run_program(modules, program, folder))


if __name__ == "__main__":
    main()
