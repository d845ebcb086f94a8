"""Select a sandbox by what it prevents on this machine, never by what is installed.

A probe is launched like a run, beside a file with a secret, a process with a secret, a listening socket and packages of
held-out text. It tries to reach all of them, and to do legitimate work. A sandbox that allows any attempt, or prevents
the work, is not used.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.lab.sandbox.base import Command, Sandbox, list_hidden
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.sandbox.landlock import Landlock
from orchestrator.lab.slots import Slot
from prepare.command import UserError

PATIENCE = 120.0  # seconds that the self-check of one sandbox may take, which imports numpy, on a busy machine
TIERS: tuple[Sandbox, ...] = (Bubblewrap(), Landlock())


class NoSandboxError(UserError):
    """No sandbox works on this machine; the message says why, and what to do."""


def select_sandbox(tiers: Sequence[Sandbox] = TIERS) -> Sandbox:
    """Return the first sandbox that passes its self-check. Raises NoSandboxError."""
    reasons: list[str] = []
    for sandbox in tiers:
        if not (reason := self_check(sandbox)):
            return sandbox
        reasons.append(f"{sandbox.tier}: {reason}")
    why = f"no sandbox works here ({'; '.join(reasons)})"
    remedy = "install bubblewrap, or " * (sys.platform == "linux")
    raise NoSandboxError(f"{why}: {remedy}trust the training code with --unsafe")


def self_check(sandbox: Sandbox) -> str:
    """Return what the sandbox fails to prevent or to allow; empty if nothing."""
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name).resolve()
        canary, secret = outside / "canary", secrets.token_hex()
        canary.write_text(secret)
        with (
            socket.create_server(("127.0.0.1", 0)) as tcp,
            subprocess.Popen(["cat"], env={"SECRET": secret}, stdin=subprocess.PIPE) as bystander,
            canary.open("rb") as shown,
        ):
            target = {
                "outside": str(outside),
                "port": tcp.getsockname()[1],
                "process": bystander.pid,
                "secret": secret,
                "hidden": [*map(str, list_hidden())],
            }
            words = ["-c", _PROBE, json.dumps(target)]
            try:
                command = Slot(outside / "slot").build_command(words, outside / "work", shown.fileno())
                command = sandbox.wrap(command)
            except (KeyError, OSError):
                return f"unavailable on {os.uname().machine}"
            found = _run_probe(command, shown.fileno())
            return found or "it can end other processes" * (bystander.poll() is not None)


def _run_probe(command: Command, given: int) -> str:
    try:
        done = subprocess.run(
            command.argv,
            env=command.env,
            cwd=command.folder,
            pass_fds=command.fds,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        return f"{command.argv[0]} is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it does not start ({type(error).__name__})"
    finally:
        for descriptor in {*command.fds, *command.reports} - {given}:
            os.close(descriptor)
    if done.returncode:
        last_line = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it does not start"])[-1]
        return last_line[:200]
    return ", ".join(f"it can {attempt}" for attempt in json.loads(done.stdout))


_PROBE = """
import json, os, pathlib, signal, socket, sys
target = json.loads(sys.argv[1])
outside, secret = pathlib.Path(target["outside"]), target["secret"]

import numpy, prepare
pathlib.Path("note").write_text("mine")
pathlib.Path("tmp/note").write_text("mine")
assert os.read(int(os.environ["NIGHTSHIFT_FD"]), 999).decode() == secret

def read(): assert outside.joinpath("canary").read_text() == secret
def change_code(): open(prepare.__file__, "ab").close()
def connect(): socket.create_connection(("127.0.0.1", target["port"]), timeout=2)
def leave_memory():
    import ctypes
    libc = ctypes.CDLL(None)
    key = libc.shmget(0, 4096, 0o1600)
    assert key >= 0
    libc.shmctl(key, 0, None)

def read_secret(path): assert path.parent.name != str(os.getpid()) and f"SECRET={secret}".encode() in path.read_bytes()

attempts = [("read outside", read)]
attempts += [("read held-out text", open, f"{folder}/__init__.py") for folder in target["hidden"]]
attempts += [("change `prepare`", change_code), ("connect", connect)]
attempts += [("read other processes", read_secret, path) for path in pathlib.Path("/proc").glob("[0-9]*/environ")]
attempts += [("leave something in memory", leave_memory), ("", os.kill, target["process"], signal.SIGTERM)]
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # in a process namespace of its own, this may be one of its threads
succeeded = {}
for name, attempt, *words in attempts:
    try: attempt(*words)
    except (OSError, AssertionError): continue
    succeeded[name] = True
print(json.dumps([name for name in succeeded if name]))
"""
