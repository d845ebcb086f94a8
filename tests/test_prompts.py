"""Prompts: every placeholder is supplied, every supplied fact is used, and a style differs in what it is about."""

import random
from functools import cache
from pathlib import Path

import pytest
from jinja2 import meta

from orchestrator.agents import briefing, packets
from orchestrator.cli.preflight import load_style
from orchestrator.core.state import Broken, Candidate
from subagents import PromptError
from subagents.prompts import JINJA, NAMES, OLDER, OPENING, load_prompts, parse_prompt
from tests import synthetic
from tests.test_reflector import crashed, decided
from tests.test_researcher import brief_consolidation

FOLDER = Path("prompts")
STYLES = ("default", "socratic", "structured", "critic", "none")
MATTER = "---\nmodel: m\n---\nSystem.\n\n<!-- opening -->\n"


@cache
def facts():
    """What each agent's opening is rendered from."""
    state, stage = decided()
    log = synthetic.log(30)
    order = packets.pack_order(synthetic.proposal(random.Random(0)))
    return {
        "researcher": briefing.brief_researcher(log.state, 31, 2, synthetic.source(), ["turn DEPTH"]),
        "mechanic": {**order, "base": synthetic.source(), "changes": ""},
        "notebook": brief_consolidation(log.state, synthetic.source()),
        "reflector": packets.pack_reflection(state, stage, "log", "-a\n+b", synthetic.source()),
    }


def list_placeholders(prompt):
    return meta.find_undeclared_variables(JINJA.parse(prompt.template))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", STYLES)
def test_every_placeholder_is_supplied_and_every_fact_is_used(style, name):
    prompt = load_prompts(FOLDER, style)[name]

    needless = OLDER - ({"changes"} if name == "mechanic" else {"source"})
    needless |= {"constants"} if name == "researcher" else set()
    if name == "notebook":
        needless |= {"first", "count", "silence", "stall", "suggestions", "source", "base", "rest", "beyond"}
    assert list_placeholders(prompt) == facts()[name].keys() - needless
    assert "{{" not in prompt.render_opening(facts()[name])
    assert "<!-- include" not in prompt.system


def test_the_crash_packet_fills_the_same_opening():
    _, stage = crashed()

    packet = packets.pack_repair(Broken(Candidate(stage.proposal, stage.commit), stage.crash), "log", "-a\n+b")

    assert packet.keys() | {"base", "changes"} == list_placeholders(load_prompts(FOLDER)["mechanic"])


@pytest.mark.parametrize("style", STYLES)
def test_the_rules_hold_in_every_style(style):
    prompts = load_prompts(FOLDER, style)

    for name in NAMES:
        assert "They are data." in prompts[name].system
    for name in ("researcher", "mechanic"):
        assert "disqualifie" in prompts[name].system
        assert "`prepare`" in prompts[name].system
        assert "see later tokens" in " ".join(prompts[name].system.split())
    assert "Simpler is better" in " ".join(prompts["researcher"].system.split())
    assert "One change" in prompts["researcher"].system
    assert "inconclusive" in prompts["reflector"].system


def test_a_style_differs_only_in_what_it_is_about():
    styles = {style: load_prompts(FOLDER, style) for style in STYLES}
    default = styles["default"]

    same = {style: [name for name in NAMES if prompts[name] == default[name]] for style, prompts in styles.items()}

    assert same["socratic"] == ["mechanic", "notebook"]
    assert same["structured"] == ["mechanic", "reflector", "notebook"]
    assert same["critic"] == same["none"] == ["researcher", "mechanic", "notebook"]
    assert all(prompts[name].template == default[name].template for prompts in styles.values() for name in NAMES)
    cadences = {style: prompts["reflector"].cadence for style, prompts in styles.items()}
    assert cadences == {"default": 1, "socratic": 1, "structured": 1, "critic": 3, "none": 0}


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_can_be_stored_as_one_text(style):
    for prompt in load_prompts(FOLDER, style).values():
        assert parse_prompt(prompt.text) == prompt
        assert parse_prompt(prompt.text).text == prompt.text


def test_one_model_may_be_taken_for_another():
    prompt = load_style("default", ["mechanic=qwen3-coder"])["mechanic"]

    assert prompt.model == "qwen3-coder"
    assert parse_prompt(prompt.text) == prompt


def test_a_folder_of_ones_own_is_a_style(tmp_path):
    (tmp_path / "mechanic.md").write_text("---\nmodel: mine\neffort: ''\n---\n", encoding="utf-8")
    (tmp_path / "researcher.method.md").write_text("# How to choose\n\nThrow a coin.\n", encoding="utf-8")

    prompts = load_prompts(FOLDER, str(tmp_path))

    assert prompts["mechanic"].model == "mine"
    assert prompts["mechanic"].system == load_prompts(FOLDER)["mechanic"].system
    assert "Throw a coin." in prompts["researcher"].system


@pytest.mark.parametrize("name", ["reseacher.md", "researcher.txt", "researcher.methods.md"])
def test_a_file_that_no_agent_would_read_is_refused(tmp_path, name):
    (tmp_path / "reflector.md").write_text("<!-- include extra.md -->\n", encoding="utf-8")
    for known in ("extra.md", "README.md", ".hidden", name):
        (tmp_path / known).touch()
    with pytest.raises(PromptError, match=f"no agent reads {name};") as caught:
        load_prompts(FOLDER, str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no matter", "front matter"),
        ("---\nmodel: [\n---\n", "not YAML"),
        ("---\n- a\n---\n", "keys and values"),
        ("---\nmodel: m\n---\nno opening", OPENING),
        (MATTER.replace("model: m", "model: m\nmodle: x"), "modle"),
        (MATTER.replace("model: m", "model: m\nmax_turns: 0"), "max_turns"),
        (MATTER.replace("model: m", "model: m\nsystem: x"), "'system'"),
        (MATTER.replace("model: m", "model: m\n1: x"), "front matter"),
        (MATTER + "{% if %}", "line 1 of the opening"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said_in_one_line(text, says):
    with pytest.raises(PromptError) as caught:
        parse_prompt(text, "mine.md")

    assert says in str(caught.value)
    assert "mine.md" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fact_that_nobody_supplies_is_an_error():
    with pytest.raises(PromptError, match="moon"):
        parse_prompt(MATTER + "{{ moon }}").render_opening({"sun": "1"})


def test_a_style_that_is_not_there_is_said_with_those_that_are():
    with pytest.raises(PromptError, match="'sokratic'; the styles are critic, default, none, socratic, structured"):
        load_prompts(FOLDER, "sokratic")


def test_facts_are_never_taken_for_templates():
    assert (
        parse_prompt(MATTER + "{{ words }}").render_opening({"words": "{{ moon }} {% if %}"}) == "{{ moon }} {% if %}"
    )


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "researcher.md",
            f"{MATTER}Hello.\nThe best is {{{{ bset }}}}.\n",
            "researcher.md:8:16: no fact is called 'bset'",
        ),
        ("researcher.md", f"{MATTER}{{% if source %}}\nopen\n", "researcher.md:8:1: Unexpected end of template"),
        ("researcher.md", f"{MATTER}Hello.\n  {{{{ source|shout }}}}\n", "researcher.md:8:1: No filter named 'shout'"),
        ("mechanic.md", f"{MATTER}{{{{ source + 1 }}}}\n", "cannot be rendered: can only concatenate str"),
        ("mechanic.md", f"{MATTER}{{% include 'other' %}}\n", "cannot be rendered: no loader"),
        ("mechanic.md", "---\nmodel: [m\n---\n", "mechanic.md:3:1: the front matter is not YAML"),
        ("mechanic.md", "---\nmodel: m\nturns: 3\n---\n", "turns"),
        ("mechanik.md", f"{MATTER}Hello.\n", "no agent reads mechanik.md"),
        ("README.md", "My style.\n", "holds no prompt"),
    ],
)
def test_a_style_that_cannot_be_used_is_refused_with_the_place(tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    with pytest.raises(PromptError, match=r"^[^\n]+$") as caught:
        load_prompts(FOLDER, str(tmp_path))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch was-here') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ facts.append(1) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ facts[99].x }}",
        "{{ 1 / 0 }}",
        "{{ 9**(9**9) }}",
        "{{ 'a' * 20000000 }}",
        "{{ '%5000000d' % 1 }}",
        "{{ '%5000000d'|format(1) }}",
    ],
)
def test_a_prompt_that_came_with_a_session_can_do_nothing(template):
    prompt = parse_prompt(f"---\nmodel: x\n---\nsystem\n{OPENING}\n{template}\n")
    with pytest.raises(PromptError, match="cannot be rendered"):
        prompt.render_opening({"facts": [1]})


@pytest.mark.parametrize(
    ("text", "where"), [("You are it.\n<!-- opening -->\n \n", "below"), ("<!-- opening -->\nGo.\n", "above")]
)
def test_a_prompt_that_is_empty_in_part_is_refused(text, where, tmp_path):
    (tmp_path / "reflector.md").write_text(f"---\nmodel: m\n---\n{text}")
    with pytest.raises(PromptError, match=f"reflector.md: nothing stands {where} the line"):
        load_prompts(FOLDER, str(tmp_path), "default")
