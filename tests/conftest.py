"""Begin with the files that take longest, and let no test depend on how fast the machine is."""

import gc
import locale
import os
import sys

import pytest

from tests.hunting import load_profile

LONG = (
    *("test_train", "test_enemies", "test_interruptions", "test_cli", "test_loop", "test_output", "test_three_agents"),
    *("test_installed", "test_tape", "test_damage", "test_trial", "test_runner", "test_crew", "test_pasted"),
)

load_profile()


def pytest_configure():
    """Tests write and read UTF-8; commands that they start have the user's locale: `environment`."""
    if locale.getpreferredencoding(False).lower() not in {"utf-8", "utf8"}:
        raise pytest.UsageError("the tests' own files are UTF-8: set PYTHONUTF8=1, as `make test` does")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False  # modules are compiled once, not by each worker and in each process


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Leave out of later garbage collections what stays to the end: they took a tenth of the tests' CPU time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """So no worker is left alone with a long one at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
