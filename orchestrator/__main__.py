"""Run a command: `nightshift`, or `python -m orchestrator`."""

import _thread
import os
import signal
import sys
import threading
import time
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
    begun = interrupted = sending = False
    thread = threading.get_ident()

    def begin() -> None:
        nonlocal begun
        begun = True
        command()

    def interrupt(_number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted, inner = True, None  # without a lock: the next Ctrl-C may come in the middle of this
        while frame and frame.f_code is not run_interruptible.__code__:
            if frame.f_code is report_lost.__code__:  # nothing can be raised out of it either
                send_again()
                return
            inner, frame = frame, frame.f_back
        if inner and inner.f_code is begin.__code__:
            raise KeyboardInterrupt
        if not begun:
            send_again()  # else it is at its end already

    def send_again() -> None:
        nonlocal sending
        if not sending:  # a second one could come while Python shuts down, and kill it
            sending = True
            _thread.start_new_thread(send, ())  # threading's own would wait for a lock that may be held below

    def send() -> None:
        nonlocal sending
        time.sleep(0.02)
        sending = False  # before it: this one may be lost, too
        signal.pthread_kill(thread, signal.SIGINT)

    def report_lost(lost: Any) -> None:
        if lost.exc_type is KeyboardInterrupt:  # a finalizer was running, out of which nothing can be raised
            send_again()
        elif not interrupted:  # else it finds what it closes half closed
            sys.__unraisablehook__(lost)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = report_lost
    try:
        begin()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # a library may turn the interrupt into an error of its own
        if not interrupted:
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
