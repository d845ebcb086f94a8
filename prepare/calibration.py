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
from pathlib import Path
from subprocess import PIPE, STDOUT

import numpy as np

from prepare import manifest, profiles
from prepare.manifest import DataError, Manifest
from prepare.profiles import Profile
from prepare.progress import Progress, tracked

HOME = Path(__file__).resolve().parent.parent
SCRIPT = "train.py"
PREFIX = ".calibration-"
EXPECTED_LINES = 54  # about 43 steps and the summary
_STEP = re.compile(r"\bdt: (\d+)ms")


def calibrated(folder: Path, made: Manifest, profile: Profile, progress: Progress) -> Manifest:
    """The manifest with the FLOPs that the baseline does in the profile's seconds. Raises DataError."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as name:
        work = Path(name).resolve()
        for stored in made.files:
            (work / stored).symlink_to(folder.resolve() / stored)
        (work / manifest.FILE_NAME).write_text(made.to_json())
        (work / SCRIPT).write_text(profiles.fit(_baseline().read_text(), profile))
        flops, seconds = _step(work, progress)
    amount = float(f"{flops / seconds * profile.budget.seconds:.3g}")
    return dataclasses.replace(made, budget=dataclasses.replace(profile.budget, amount=amount))


def _baseline() -> Path:
    for path in (HOME / SCRIPT, Path(SCRIPT)):
        if path.is_file():
            return path
    raise DataError(f"no {SCRIPT} to measure this machine with: go to its folder, or give the work with --flops")


def _step(work: Path, progress: Progress) -> tuple[float, float]:
    """FLOPs and seconds of one quiet training step, from the script's own reports."""
    reading, writing = os.pipe()
    env = os.environ | {
        "NIGHTSHIFT_DATA": str(work),
        "NIGHTSHIFT_FD": str(writing),
        "MKL_CBWR": "AUTO,STRICT",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": str(HOME),
    }
    with subprocess.Popen(
        [sys.executable, SCRIPT], cwd=work, env=env, pass_fds=[writing], stdout=PIPE, stderr=STDOUT, text=True
    ) as training:
        os.close(writing)
        assert training.stdout is not None
        printed = list(tracked(training.stdout, EXPECTED_LINES, "measuring this machine", progress))
    with os.fdopen(reading) as reports:
        events = [json.loads(line) for line in reports]
    steps = [int(milliseconds) / 1000 for milliseconds in _STEP.findall("".join(printed))]
    flops = [event["flops"] for event in events if event["event"] == "measured"]
    if training.returncode or not steps or not flops:
        last = printed[-1].strip() if printed else "no output"
        raise DataError(f"{SCRIPT} fails on the prepared data ({last}): repair it, or give the work with --flops")
    return flops[-1], float(np.quantile(steps, 0.25))
