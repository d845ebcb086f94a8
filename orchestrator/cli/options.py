import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.lab.sandbox.base import NoSandbox, Sandbox
from orchestrator.lab.sandbox.select import select_sandbox
from orchestrator.session.store import Session
from subagents.prompts import Prompt, load_prompts


class UsageError(Exception):
    """What was asked for cannot be done; the message is one line that says what to do instead."""


CrewName = Literal["claude", "optuna", "centaur"]
PROMPTS = Path(__file__).parent.parent.parent / "prompts"
Hours = Annotated[float, typer.Option(min=0, help="how long the night is, in hours")]
Name = Annotated[str, typer.Option("--session", help="the session's name (default: the date and a word)")]
Experiments = Annotated[int | None, typer.Option(min=1, help="stop after so many experiments")]
Dollars = Annotated[float | None, typer.Option(min=0, help="stop before the models cost more than so many dollars")]
Style = Annotated[str, typer.Option(help="the style of prompts: a folder in prompts/, or any other folder")]
Model = Annotated[list[str] | None, typer.Option(help="MODEL for all agents, or AGENT=MODEL; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="draws all other seeds (default: by chance)")]
Notify = Annotated[str, typer.Option(envvar="NIGHTSHIFT_NOTIFY", help="send word to this Apprise URL")]
Sessions = Annotated[Path, typer.Option(help="the folder of sessions")]
Data = Annotated[Path, typer.Option(envvar="NIGHTSHIFT_DATA", help="the folder that `python -m prepare` filled")]
Script = Annotated[Path, typer.Option(help="the training script; its git repository gets the branch")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="train without a sandbox: only where you trust the code")]
Musings = Annotated[Path, typer.Option(help="the folder of musings")]


@dataclass(frozen=True)
class Paths:
    """Where a session finds its things."""

    sessions: Path
    data: Path
    script: Path
    musings: Path
    unsafe: bool = False
    """Training code is trusted."""

    def session(self, name: str) -> Path:
        return self.sessions / name / "session.db"

    def sandbox(self) -> Sandbox:
        """What training code is shut in. Raises NoSandboxWorks."""
        return NoSandbox() if self.unsafe else select_sandbox()

    @property
    def guidance(self) -> Path:
        return self.script.parent / "guidance.md"


def load_style(style: str, models: list[str]) -> dict[str, Prompt]:
    """The style's prompts, each asking its model. Raises PromptError, Refused."""
    texts = load_prompts(PROMPTS, style)
    for entry in models:
        agent, _, model = entry.rpartition("=")
        if agent and agent not in texts:
            raise UsageError(f"--model {entry}: there is no agent {agent!r}, there are {', '.join(texts)}")
        chosen = [agent] if agent else list(texts)
        texts |= {name: texts[name].asking(model) for name in chosen}
    return texts


def open_session(places: Paths, name: str) -> Session:
    """The session of that name, or the file. Raises Refused, SessionError."""
    path = Path(name) if name.endswith(".db") else places.session(name)
    if not path.parent.is_dir():
        known = sorted(p.parent.name for p in places.sessions.glob("*/session.db"))
        hint = f"there are {', '.join(known[-5:])}" if known else f"there are none in {places.sessions}"
        raise UsageError(f"there is no session {name!r}: {hint}")
    return Session(path, time.time)
