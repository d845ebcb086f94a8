"""Hold the documentation to the code: links, paths, diagrams, and the example of what a new event touches."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from orchestrator.core import events, state
from orchestrator.policy import thresholds

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), ROOT / "musings/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page.name != "commands.md"]
"""Pages that people write: what the commands say of themselves is held elsewhere."""
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
DIALECT = ("nobody", "whoever", "of before", " is no ", "but for", "whatever comes")
OUTSIDE_STAGES = {"Proposed", "BaselineCommitted", "Resumed", "Forked"}
"""Events in the diagram of stages that `apply` handles itself."""


def name_page(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def list_product_files() -> list[Path]:
    return [path for part in ("orchestrator", "subagents", "prepare") for path in sorted((ROOT / part).rglob("*.py"))]


def list_links(page: Path) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page.read_text())
    return [link for link in found if not re.match(r"[a-z]+://", link)]


def make_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def list_diagrams() -> list[str]:
    return re.findall(r"^```mermaid\n(.*?)^```", ARCHITECTURE, re.MULTILINE | re.DOTALL)


def list_names(path: Path) -> set[str]:
    """Return every name that a file uses: plain, as an attribute, or as an import."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) | ast.ClassDef(name=name):
                names.add(name)
    return names


def name_alternatives(pattern: ast.pattern | None) -> set[str]:
    """Return the classes that a pattern matches; `[*]`, the diagram's start, for None."""
    match pattern:
        case ast.MatchAs(pattern=inner):
            return name_alternatives(inner) if inner else set()
        case ast.MatchOr(patterns=parts):
            return set().union(*map(name_alternatives, parts))
        case ast.MatchClass(cls=ast.Name(id=name) | ast.Attribute(attr=name)):
            return {name}
        case ast.MatchSingleton(value=None):
            return {"[*]"}
    raise AssertionError(ast.dump(pattern))


def list_transitions() -> set[tuple[str, str]]:
    """Return each (event, stage) that `_advance` has a case for."""
    tree = ast.parse((ROOT / "orchestrator/core/state.py").read_text())
    advance = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_advance")
    pairs = [case.pattern.patterns for n in ast.walk(advance) if isinstance(n, ast.Match) for case in n.cases
             if isinstance(case.pattern, ast.MatchSequence)]  # fmt: skip
    return {(e, s) for first, second in pairs for e in name_alternatives(first) for s in name_alternatives(second)}


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_lead_to_files(page):
    for link in list_links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        written_later = name_page(page) == "musings/README.md" and file == "index.md"
        assert target.exists() or written_later, f"{name_page(page)}: {link}"
        assert not anchor or anchor in make_anchors(target), f"{name_page(page)}: {link}"


@pytest.mark.parametrize("page", WRITTEN, ids=name_page)
def test_named_paths_exist(page):
    text = page.read_text()
    for path in re.findall(r"(?<![\w/])(?:orchestrator|subagents|prepare|tests|prompts/default|docs)/[\w./-]*\w", text):
        assert (ROOT / path).exists(), f"{name_page(page)} names {path}"


@pytest.mark.parametrize("page", WRITTEN, ids=name_page)
def test_the_old_dialect_is_gone(page):
    text = re.sub(r"\s+", " ", page.read_text())
    assert [word for word in DIALECT if word in text.lower()] == []


def test_the_readme_is_short_and_its_tree_is_true():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    tree = re.search(r"^```\n(orchestrator/.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert tree
    folders, named = {}, set()
    for line in tree[1].splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        folders[depth] = name
        path = "".join(folders[level] for level in sorted(folders) if level < depth and folders[level].endswith("/"))
        folders = {level: folder for level, folder in folders.items() if level <= depth}
        named.add((path + name).rstrip("/"))
    assert [path for path in named if not (ROOT / path).exists()] == []
    packages = {path.parent for path in list_product_files()}
    flat = set((ROOT / "orchestrator").glob("[!_]*.py"))
    assert {path.relative_to(ROOT).as_posix() for path in packages | flat} <= named


def test_diagrams_are_four():
    assert [diagram.split()[0] for diagram in list_diagrams()] == [
        "stateDiagram-v2",
        "flowchart",
        "flowchart",
        "sequenceDiagram",
    ]
    for diagram in list_diagrams():
        assert ";" not in diagram
        assert not any(diagram.count(left) != diagram.count(right) for left, right in ("[]", "{}", "()"))


def test_the_diagram_of_stages_is_what_the_fold_does():
    arrows = re.findall(r"^ +(\S+) --> (\S+) : (.+)$", list_diagrams()[0], re.MULTILINE)
    drawn = {(event, source) for source, _, label in arrows for event in label.split(", ")}
    assert {pair for pair in drawn if pair[0] not in OUTSIDE_STAGES} == list_transitions()
    stages = {name for source, target, _ in arrows for name in (source, target)} - {"[*]"}
    assert stages == {stage.__name__ for stage in get_args(state.Stage)}
    assert all(issubclass(getattr(events, event), events.Frozen) for event, _ in drawn)


def test_thresholds_named_exist():
    for name in re.findall(r"\b[A-Z]+_[A-Z_]+\b", ARCHITECTURE):
        assert hasattr(thresholds, name), name


def test_flowcharts_draw_no_undefined_node():
    for diagram in list_diagrams()[1:3]:
        defined = set(re.findall(r"\b(\w+)[\[{]\"", diagram))
        ends = re.findall(r"^ +(\w+)[^\n]*?-\.?->(?:\|[^|]*\|)? (\w+)", diagram, re.MULTILINE)
        assert ends
        assert {node for pair in ends for node in pair} == defined


def test_a_new_event_touches_what_contributing_says():
    section = CONTRIBUTING.partition("## Add an event\n")[2].partition("\n## ")[0]
    example = re.search(r"`(\w+)` as an example", section)
    author = re.search(r"^Written by: `([\w/.]+)`", section, re.MULTILINE)
    known = re.findall(r"^\d\. `([\w/.]+)`", section, re.MULTILINE)
    assert example
    assert author
    assert len(known) <= 3
    naming = {name_page(path) for path in list_product_files() if example[1] in list_names(path)}
    assert {*known[:2], author[1]} <= naming <= {*known, author[1]}  # the third is needed only for words of its own


def test_messages_quoted_as_common_mistakes_are_said():
    source = "".join(path.read_text() for path in list_product_files())
    table = (ROOT / "docs/your-train.md").read_text().partition("## Common mistakes")[2]
    for message in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE):
        for part in message.split("…"):
            assert part.strip() in source, f"{message!r}: nothing says {part!r}"
