"""Run a command: `nightshift`, or `python -m orchestrator`."""

import os
import signal
import sys


def main() -> None:
    """Run the command that the process was started with; nothing is ever imported from the working folder."""
    if sys.platform == "win32":
        sys.stderr.write("nightshift: on Windows it runs in WSL: `wsl --install`, then install it there\n")
        raise SystemExit(2)
    home, here = (os.path.realpath(path) for path in (f"{__file__}/../..", "."))
    sys.path[:] = [path for path in sys.path if home == here or os.path.realpath(path) != here]
    os.environ["PYTHONSAFEPATH"] = "1"  # nor by the processes that it starts
    try:
        from orchestrator.cli import main as cli

        cli.main()
    except KeyboardInterrupt:  # before the command started
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while Python shuts down


if __name__ == "__main__":
    main()
