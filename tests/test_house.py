"""Hold the layout: which way imports go, which module may know a foreign library, and how things are named."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANKS = {
    "orchestrator/core": 0,
    "orchestrator/policy": 1,
    "orchestrator/ports.py": 2,
    "orchestrator/repo.py": 2,
    "orchestrator/loop.py": 3,
    "orchestrator/session": 3,
    "orchestrator/agents": 3,
    "orchestrator/optimizer": 3,
    "orchestrator/executor.py": 3,
    "orchestrator/lab": 3,
    "orchestrator/cluster.py": 4,
    "orchestrator/supervisor.py": 4,
    "orchestrator/views": 4,
    "orchestrator/cli": 5,
}
"""A place imports only from places of a lower rank, or from itself."""
PURE = (
    "orchestrator/core",
    "orchestrator/policy",
    *(f"orchestrator/agents/{name}.py" for name in ("briefing", "fidelity", "packets")),
)
IMPURE = {
    *{"time", "datetime", "random", "secrets", "os", "pathlib", "subprocess", "socket", "sqlite3", "asyncio"},
    *{"threading", "torch", "anthropic", "requests", "httpx", "optuna"},
}
ONE_FILE = {
    "anthropic": "subagents/claude.py",
    "apprise": "orchestrator/views/notify.py",
    "ray": "orchestrator/cluster.py",
    "optuna": "orchestrator/optimizer/study.py",
    "regex": "orchestrator/lab/log.py",
    "merge3": "orchestrator/core/source.py",
    "tenacity": "subagents/claude.py",
    "starlette": "orchestrator/cli/pages.py",
    "uvicorn": "orchestrator/cli/serve.py",
}
RUNTIME = {
    "__init__",
    "evaluator",
    "budget",
    "channel",
    "evaluation",
    "loader",
    "machine",
    "manifest",
    "shards",
    "tokenizer",
}
"""Modules of `prepare` that run beside training code; they import nothing that only builds data."""
VERBS = set((ROOT / "tests/verbs.txt").read_text().split())
"""Verbs that functions are named by. A new one is added here once somebody has looked at it."""
PREFIXES = {"is", "has", "from", "to", "with", "as", "at"}
"""Beginnings of predicates and conversions."""
TERMS = {"main", "credentials_error", "usd", "doctor", "init", "musings", "sessions"}
"""Names that are no verbs: the commands that users type, and terms of the field."""
SPOKEN = {"answers", "elapsed", "shard"}
"""Names of `prepare.channel`, which training scripts of others use."""
CALLBACKS = {"connection_made", "pipe_data_received", "pipe_connection_lost", "process_exited"}
"""Names that asyncio gives to what a protocol of a process is told."""


def list_imports(path: Path) -> set[str]:
    """Return the full dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def list_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in list_imports(path)}


def list_files(place: str) -> list[Path]:
    """Return the Python files of a folder, or the one file. Fails where a named place is missing."""
    path = ROOT / place
    assert path.exists(), f"{place} is named here and does not exist"
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files, f"{place} holds no Python file"
    return files


def find_place(path: Path) -> str:
    """Return the ranked place that a file of the orchestrator lies in."""
    name = path.relative_to(ROOT).as_posix()
    found = [place for place in RANKS if name == place or name.startswith(f"{place}/")]
    assert found, f"{name} lies in no ranked place: give it one in RANKS"
    return found[0]


def resolve(name: str) -> str | None:
    """Return the ranked place that a dotted name leads to; None outside the orchestrator."""
    path = name.replace(".", "/")
    return next((place for place in RANKS if f"{path}/".startswith(f"{place.removesuffix('.py')}/")), None)


def test_packages_import_downward():
    for path in list_files("subagents"):
        assert not list_packages(path) & {"orchestrator", "prepare", "train", "torch"}, path
    for path in list_files("prepare"):
        assert not list_packages(path) & {"orchestrator", "subagents", "train"}, path
    for path in list_files("orchestrator"):
        assert not list_packages(path) & {"train", "torch", "tests"}, path
    assert not list_packages(ROOT / "train.py") & {"orchestrator", "subagents"}


@pytest.mark.parametrize("place", RANKS)
def test_imports_go_to_lower_ranks(place):
    for path in list_files(place):
        for name in list_imports(path):
            target = resolve(name)
            assert target in (None, place) or RANKS[target] < RANKS[place], f"{path}: {name}"


def test_every_module_has_a_rank():
    for path in list_files("orchestrator"):
        if path.parent != ROOT / "orchestrator" or path.name not in ("__init__.py", "__main__.py"):
            find_place(path)


@pytest.mark.parametrize("place", PURE)
def test_the_core_is_pure(place):
    for path in list_files(place):
        assert not list_packages(path) & IMPURE, path


def test_the_runtime_of_prepare_builds_nothing():
    for name in RUNTIME:
        for full in list_imports(list_files(f"prepare/{name}.py")[0]):
            assert not full.startswith(("prepare.build", "prepare.corpus")), f"prepare/{name}.py: {full}"


@pytest.mark.parametrize("library", ONE_FILE)
def test_a_foreign_library_lives_in_one_file(library):
    homes = [
        p.relative_to(ROOT).as_posix()
        for folder in ("orchestrator", "subagents")
        for p in list_files(folder)
        if library in list_packages(p)
    ]
    assert homes == [ONE_FILE[library]]


BOUNDARIES = "__main__.py", "views/observers.py"


def test_only_the_command_line_and_the_boundary_of_the_views_catch_everything():
    for path in [*list_files("orchestrator"), *list_files("subagents"), *list_files("prepare")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                wide = node.type is None or (isinstance(node.type, ast.Name) and node.type.id.endswith("Exception"))
                allowed = path.parent.name == "cli" or path in {ROOT / "orchestrator" / name for name in BOUNDARIES}
                assert not wide or allowed, f"{path}:{node.lineno}"


def test_the_orchestrator_starts_without_torch():
    code = "import sys; import orchestrator.cli.start; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def list_functions(path: Path) -> list[str]:
    """Return the names of a file's functions and methods, but for properties, dunder methods and nested functions."""
    names: list[str] = []
    holders: list[ast.AST] = [ast.parse(path.read_text())]
    while holders:
        for node in getattr(holders.pop(), "body", []):
            if isinstance(node, ast.ClassDef):
                holders.append(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                marked = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
                names += [] if marked or node.name.startswith("__") else [node.name]
    return names


@pytest.mark.parametrize("folder", ["orchestrator", "subagents", "prepare"])
def test_functions_are_named_by_verbs(folder):
    for path in list_files(folder):
        for name in list_functions(path):
            plain = name.lstrip("_")
            known = plain.split("_")[0] in VERBS | PREFIXES or plain in TERMS | SPOKEN | CALLBACKS
            assert known, f"{path.relative_to(ROOT)}: {name}"


def test_public_types_have_names_of_their_own():
    homes: dict[str, str] = {}
    for path in [file for folder in ("orchestrator", "subagents", "prepare") for file in list_files(folder)]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in homes, f"{node.name}: {path} and {homes[node.name]}"
                homes[node.name] = str(path)


@pytest.mark.parametrize("folder", ["orchestrator", "subagents", "prepare"])
def test_packages_say_what_they_are_for(folder):
    for path in list_files(folder):
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"
