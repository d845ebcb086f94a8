"""Run a command: `python -m orchestrator`."""

import signal

try:
    from orchestrator.cli.main import main

    main()
except KeyboardInterrupt:  # before the command started
    raise SystemExit(130) from None
finally:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while Python shuts down
