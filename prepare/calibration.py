"""How much work is 20 seconds here? The baseline trains for a moment, and its quiet steps tell.

Prepared data then carries a budget in FLOPs, and every run on it does the same work, however busy the machine.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prepare import manifest, profiles
from prepare.manifest import DataError, Manifest
from prepare.profiles import Profile

HOME = Path(__file__).resolve().parent.parent
SCRIPT = "train.py"
_STEP = re.compile(r"\bdt: (\d+)ms")


def calibrated(folder: Path, made: Manifest, profile: Profile, progress: Callable[[str], None]) -> Manifest:
    """The manifest with the FLOPs that the baseline does in the profile's seconds. Raises DataError."""
    progress("measuring this machine: the baseline trains for a moment")
    with tempfile.TemporaryDirectory(prefix=".calibration-", dir=folder) as name:
        work = Path(name).resolve()
        for stored in made.files:
            (work / stored).symlink_to(folder.resolve() / stored)
        (work / manifest.FILE_NAME).write_text(made.to_json())
        (work / SCRIPT).write_text(profiles.fit(_baseline().read_text(), profile))
        flops, seconds = _step_of(work)
    amount = float(f"{flops / seconds * profile.budget.seconds:.3g}")
    return dataclasses.replace(made, budget=dataclasses.replace(profile.budget, amount=amount))


def _baseline() -> Path:
    for path in (HOME / SCRIPT, Path(SCRIPT)):
        if path.is_file():
            return path
    raise DataError(f"no {SCRIPT} to measure this machine with: go to its folder, or give the work with --flops")


def _step_of(work: Path) -> tuple[float, float]:
    """FLOPs and seconds of one quiet training step, from the script's own reports."""
    reading, writing = os.pipe()
    env = os.environ | {
        "NIGHTSHIFT_DATA": str(work),
        "NIGHTSHIFT_FD": str(writing),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": str(HOME),
    }
    with os.fdopen(reading) as reports:
        done = subprocess.run(
            [sys.executable, SCRIPT], cwd=work, env=env, pass_fds=[writing], capture_output=True, text=True, check=False
        )
        os.close(writing)
        events = [json.loads(line) for line in reports]
    steps = [int(milliseconds) / 1000 for milliseconds in _STEP.findall(done.stdout)]
    flops = [event["flops"] for event in events if event["event"] == "measured"]
    if done.returncode or not steps or not flops:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise DataError(f"{SCRIPT} fails on the prepared data ({last}): repair it, or give the work with --flops")
    return flops[-1], float(np.quantile(steps, 0.25))
