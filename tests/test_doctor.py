"""Check the doctor's findings on machines other than this one, and on scripts."""

import pytest

from orchestrator.cli.doctor import check_compiler, check_script
from orchestrator.cli.options import Options
from orchestrator.cli.preflight import Preflight
from tests.test_reported import ground


def test_without_a_compiler_or_headers_a_gpu_is_of_no_use(tmp_path):
    found = check_compiler(tmp_path, str(tmp_path))
    assert found.state == "bad"
    assert f"no C compiler and no {tmp_path / 'Python.h'}" in found.message

    (tmp_path / "Python.h").touch()
    assert "Python.h" not in check_compiler(tmp_path, str(tmp_path)).message

    (tmp_path / "gcc").touch(mode=0o755)
    assert check_compiler(tmp_path, str(tmp_path)).state == "good"


@pytest.mark.parametrize(
    ("source", "state", "says"),
    [
        ("print('METRIC val_bpb=1.5')", "good", "it ended after"),
        ("import gone", "bad", "ModuleNotFoundError: No module named 'gone'"),
        (
            "print('step 00001 (1.0%) | loss: 3.0', flush=True); import time; time.sleep(60)",
            "good",
            "it came to a step after",
        ),
    ],
)
def test_a_script_is_tried_until_its_first_step(tmp_path, source, state, says):
    place = ground(tmp_path / "place", {"train.py": source})

    found = check_script(Preflight(Options(script=place / "train.py", unsafe=True), "night", "optuna"))

    assert (found.state, found.subject) == (state, "script"), found.message
    assert says in found.message
    assert not (place / "sessions").exists()
