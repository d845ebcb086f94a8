"""A hostile train.py: leaves daemons behind that ignore SIGTERM, then trains for ever.

One keeps its environment, one has none by which it could be found; both write their process ids where the test looks.
"""

import os
import signal
import sys
import time
from pathlib import Path

for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(sig, signal.SIG_IGN)


def note(name):
    path = Path(os.environ["NIGHTSHIFT_DATA"], name)
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)


if sys.argv[1:]:
    note(sys.argv[1])
    time.sleep(600)
for name in ("tagged", "nameless"):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            kept = ("NIGHTSHIFT_DATA",) if name == "nameless" else tuple(os.environ)
            os.execve(sys.executable, [sys.executable, __file__, name], {key: os.environ[key] for key in kept})
        os._exit(0)
note("trainer")
time.sleep(600)
