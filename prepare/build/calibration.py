"""How much work is 20 seconds here, how fast is this GPU? The baseline trains for a moment, and its steps tell.

Prepared data then carries a budget of work, and every run on it does the same work, however busy the machine.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import numpy as np

from prepare import manifest, profiles
from prepare.manifest import BudgetAmount, DataError, Manifest
from prepare.profiles import Profile
from prepare.progress import Progress, track

HOME = Path(__file__).resolve().parent.parent.parent
SCRIPT = "train.py"
PREFIX = ".calibration-"
EXPECTED_LINES = 54  # about 43 steps and the summary
PROBED_STEPS, PROBE_SECONDS = 16, 16.0
_RATE = re.compile(r"\btok/sec: ([\d,]+)")
_STEP = re.compile(r"\bdt: (\d+)ms")


def calibrate(folder: Path, made: Manifest, profile: Profile, progress: Progress) -> Manifest:
    """The manifest with the work that the baseline does in the profile's seconds, on the CPU. Raises DataError."""
    done, seconds = step(folder, made, profile, progress)
    amount = float(f"{done / seconds * profile.budget.seconds:.3g}")
    return dataclasses.replace(made, budget=dataclasses.replace(profile.budget, amount=amount))


def probe(folder: Path, made: Manifest, profile: Profile, progress: Progress) -> Manifest:
    """The manifest with depth, width and batch that suit how fast the profile's own model trains here."""
    short = BudgetAmount(kind="time", amount=PROBE_SECONDS, seconds=PROBE_SECONDS)
    with _make_workplace(folder, dataclasses.replace(made, budget=short), profile) as work:
        printed, _ = _start_training(work, PROBED_STEPS, progress)
    rates = [float(rate.replace(",", "")) for rate in _RATE.findall("".join(printed))][-PROBED_STEPS // 2 :]
    if not rates:
        raise _is_useless(printed)
    return dataclasses.replace(
        made, constants=profiles.find_changes(profiles.scaled_to(profile, float(np.median(rates))))
    )


@contextmanager
def _make_workplace(folder: Path, made: Manifest, profile: Profile) -> Iterator[Path]:
    """A folder with the data so far, as the script expects it."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as name:
        work = Path(name).resolve()
        for stored in made.files:
            (work / stored).symlink_to(folder.resolve() / stored)
        (work / manifest.MANIFEST_FILE).write_text(made.to_json())
        (work / SCRIPT).write_text(profiles.apply_to_script(_load_baseline().read_text(), profile))
        yield work


def _load_baseline() -> Path:
    for path in (HOME / SCRIPT, Path(SCRIPT)):
        if path.is_file():
            return path
    raise DataError(f"no {SCRIPT} to measure this machine with: go to its folder, or give the work with --work")


def step(folder: Path, made: Manifest, profile: Profile, progress: Progress) -> tuple[float, float]:
    """Work and seconds of one quiet step on the CPU, from the script's own reports. Raises DataError."""
    with _make_workplace(folder, made, profile) as work:
        printed, events = _start_training(work, None, progress, CUDA_VISIBLE_DEVICES="")
    steps = [int(milliseconds) / 1000 for milliseconds in _STEP.findall("".join(printed))]
    done = [event["work"] for event in events if event["event"] == "measured"]
    if not steps or not done:
        raise _is_useless(printed)
    return done[-1], float(np.quantile(steps, 0.25))


def _start_training(
    work: Path, steps: int | None, progress: Progress, **variables: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """What the script prints and reports, until its end or so many lines on steps. Raises DataError if it fails."""
    reading, writing = os.pipe()
    env = os.environ | {
        "NIGHTSHIFT_DATA": str(work),
        "NIGHTSHIFT_FD": str(writing),
        "MKL_CBWR": "AUTO,STRICT",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": str(HOME),
        **variables,
    }
    with subprocess.Popen(
        [sys.executable, SCRIPT], cwd=work, env=env, pass_fds=[writing], stdout=PIPE, stderr=STDOUT, text=True
    ) as training:
        os.close(writing)
        assert training.stdout is not None
        lines = track(training.stdout, steps or EXPECTED_LINES, "measuring this machine", progress)
        printed = list(_wait_until(steps, lines))
        if enough := steps is not None and len(_RATE.findall("".join(printed))) >= steps:
            training.kill()
    with os.fdopen(reading) as reports:
        events = [json.loads(line) for line in reports]
    if training.returncode and not enough:
        raise _is_useless(printed)
    return printed, events


def _wait_until(steps: int | None, lines: Iterable[str]) -> Iterator[str]:
    left = steps
    for line in lines:
        yield line
        if left is not None and _RATE.search(line) and not (left := left - 1):
            return


def _is_useless(printed: list[str]) -> DataError:
    last = printed[-1].strip() if printed else "no output"
    return DataError(f"{SCRIPT} fails on the prepared data ({last}): repair it, or give the work with --work")
