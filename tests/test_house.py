"""The lines that the house is built on: which way imports go, and who may know a foreign library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = {"events", "forecast", "state", "policy", "source", "notes", "briefing", "figures", "constants"}
IMPURE = {
    *{"time", "datetime", "random", "secrets", "os", "pathlib", "subprocess", "socket", "sqlite3", "asyncio"},
    *{"threading", "torch", "anthropic", "requests", "httpx", "optuna"},
}
ONE_FILE = {
    "anthropic": "subagents/claude.py",
    "apprise": "orchestrator/notice.py",
    "tensorboardX": "orchestrator/report/board.py",
    "optuna": "orchestrator/optimizer.py",
    "merge3": "orchestrator/source.py",
    "tenacity": "subagents/claude.py",
    "sqlite3": None,
}


def imported(path: Path) -> set[str]:
    """Full dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_imports_go_down():
    for path in files("subagents"):
        assert not tops(path) & {"orchestrator", "prepare", "train", "torch"}, path
    for path in files("prepare"):
        assert not tops(path) & {"orchestrator", "subagents", "train"}, path
    for path in files("orchestrator"):
        assert not tops(path) & {"train", "torch", "tests"}, path
    assert not tops(ROOT / "train.py") & {"orchestrator", "subagents"}


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_is_pure(name):
    path = ROOT / "orchestrator" / f"{name}.py"
    if path.exists():
        assert not tops(path) & IMPURE, path


def test_the_core_knows_only_the_core():
    for name in CORE - {"briefing"}:
        path = ROOT / "orchestrator" / f"{name}.py"
        if path.exists():
            ours = {full.split(".")[1] for full in imported(path) if full.startswith("orchestrator.")}
            assert ours <= CORE, path


@pytest.mark.parametrize("library", [name for name, home in ONE_FILE.items() if home])
def test_a_foreign_library_lives_in_one_file(library):
    homes = [str(p.relative_to(ROOT)) for f in ("orchestrator", "subagents") for p in files(f) if library in tops(p)]
    assert set(homes) <= {ONE_FILE[library]}


def test_only_the_command_line_may_catch_everything():
    for path in [*files("orchestrator"), *files("subagents")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                wide = node.type is None or (isinstance(node.type, ast.Name) and node.type.id.endswith("Exception"))
                assert not wide or path.name == "cli.py", f"{path}:{node.lineno}"


def test_the_orchestrator_starts_without_torch():
    code = "import sys; import orchestrator.cli; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
