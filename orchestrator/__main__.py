"""Run a command: `nightshift`, or `python -m orchestrator`."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def main() -> None:
    """Run the command that the process was started with; nothing is ever imported from the working folder."""
    if sys.platform == "win32":
        sys.stderr.write("nightshift: on Windows it runs in WSL: `wsl --install`, then install it there\n")
        raise SystemExit(2)
    try:
        home, here = (os.path.realpath(path) for path in (f"{__file__}/../..", "."))
    except FileNotFoundError:
        sys.stderr.write("nightshift: the folder that you are in was deleted: cd into one that exists\n")
        raise SystemExit(2) from None
    sys.path[:] = [path for path in sys.path if home == here or os.path.realpath(path) != here]
    os.environ["PYTHONSAFEPATH"] = "1"  # nor by the processes that it starts
    run_interruptible(_import_and_run)


def run_interruptible(command: Callable[[], None]) -> None:
    """Run a command; Ctrl-C ends it by SystemExit with code 130, even in the middle of an import or a finalizer."""
    interrupted, sending = threading.Event(), threading.Event()

    def interrupt(_number: int, frame: FrameType | None) -> None:
        interrupted.set()
        while frame:
            if frame.f_code is report_lost.__code__:  # nothing can be raised out of it either
                send_again()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    def send_again() -> None:
        if not sending.is_set():  # a second one could come while Python shuts down, and kill it
            sending.set()
            threading.Timer(0.02, send).start()

    def send() -> None:
        sending.clear()  # before it: this one may be lost, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def report_lost(lost: Any) -> None:
        if lost.exc_type is KeyboardInterrupt:  # a finalizer was running, out of which nothing can be raised
            send_again()
        elif not interrupted.is_set():  # else it finds what it closes half closed
            sys.__unraisablehook__(lost)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = report_lost
    try:
        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # a library may turn the interrupt into an error of its own
        if not interrupted.is_set():
            raise
        sys.stderr.write(f"nightshift: interrupted ({type(error).__name__})\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while Python shuts down


def _import_and_run() -> None:
    from orchestrator.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
