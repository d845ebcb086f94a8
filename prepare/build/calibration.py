"""Measure how much work the baseline does on this CPU in the profile's seconds: the budget of every run."""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any

import numpy as np

from prepare import manifest, profiles
from prepare.corpus import track
from prepare.manifest import DataError, Manifest
from prepare.profiles import Profile

HOME = Path(__file__).resolve().parent.parent.parent
SCRIPT = "train.py"
PREFIX = ".calibration-"
EXPECTED_LINES = 54  # about 43 steps and the summary
_STEP = re.compile(r"\bdt: (\d+)ms")


def measure_step(folder: Path, built: Manifest, profile: Profile) -> tuple[float, float]:
    """Return the work of one step and the seconds that it takes on an idle CPU. Raises DataError."""
    printed, events = train_baseline(folder, built, profile)
    steps = [int(milliseconds) / 1000 for milliseconds in _STEP.findall(printed)]
    work = [event["work"] for event in events if event["event"] == "measured"]
    if not steps or not work:
        raise _make_error(printed)
    return work[-1], float(np.quantile(steps, 0.25))


def train_baseline(folder: Path, built: Manifest, profile: Profile) -> tuple[str, list[dict[str, Any]]]:
    """Train the profile's baseline on the CPU; return its output and the events that it sends. Raises DataError."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as name, tempfile.TemporaryFile() as reports:
        workspace = Path(name).resolve()
        for stored in built.files:
            (workspace / stored).symlink_to(folder.resolve() / stored)
        (workspace / manifest.MANIFEST_FILE).write_text(built.to_json())
        (workspace / SCRIPT).write_text(profiles.apply_to_script(read_baseline(), profile), "utf-8")
        env = os.environ | {
            "NIGHTSHIFT_DATA": str(workspace),
            "NIGHTSHIFT_FD": str(reports.fileno()),
            "MKL_CBWR": "AUTO,STRICT",
            "OMP_WAIT_POLICY": "passive",
            "PYTHONPATH": str(HOME),
            "CUDA_VISIBLE_DEVICES": "",
        }
        command, given = [sys.executable, SCRIPT], [reports.fileno()]
        with Popen(command, cwd=workspace, env=env, pass_fds=given, stdout=PIPE, stderr=STDOUT, text=True) as training:
            assert training.stdout is not None
            printed = "".join(track(training.stdout, EXPECTED_LINES, "measuring this machine"))
        if training.returncode:
            raise _make_error(printed)
        reports.seek(0)
        return printed, [json.loads(line) for line in reports]


def read_baseline() -> str:
    """Return the train.py that comes with Nightshift; a wheel holds it beside this module."""
    path = Path(__file__).with_name(SCRIPT)
    return (path if path.is_file() else HOME / SCRIPT).read_text("utf-8")


def _make_error(printed: str) -> DataError:
    last = (printed.strip() or "no output").splitlines()[-1].strip()
    return DataError(f"{SCRIPT} fails on the prepared data ({last}): repair it, or give the work with --work")
