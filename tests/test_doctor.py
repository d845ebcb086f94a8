"""Check the doctor's findings on machines other than this one."""

from orchestrator.cli.doctor import check_compiler


def test_without_a_compiler_or_headers_a_gpu_is_of_no_use(tmp_path):
    found = check_compiler(tmp_path, str(tmp_path))
    assert found.state == "bad"
    assert f"no C compiler and no {tmp_path / 'Python.h'}" in found.message

    (tmp_path / "Python.h").touch()
    assert "Python.h" not in check_compiler(tmp_path, str(tmp_path)).message

    (tmp_path / "gcc").touch(mode=0o755)
    assert check_compiler(tmp_path, str(tmp_path)).state == "good"
