"""Fill a data folder, once, with tokenizer, packed rows and budget: `nightshift prepare`, or `python -m prepare`."""

import json
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from prepare import manifest, profiles
from prepare.build.calibration import SCRIPT, read_baseline
from prepare.build.folder import PLAN, build_folder
from prepare.corpus import bars, canonicalize, open_corpus
from prepare.files import LockedError, hold_lock
from prepare.manifest import DataError, Manifest

LOCK, DATA = ".lock", Path("data")
app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def prepare(
    data: Annotated[Path, typer.Option(file_okay=False, envvar="NIGHTSHIFT_DATA", help="folder to fill")] = DATA,
    corpus: Annotated[
        str, typer.Option(help="docstrings, climbmix, or a path: .txt, .md, .rst, .py, .jsonl, .parquet")
    ] = "docstrings",
    shards: Annotated[
        int | None, typer.Option(min=1, max=6541, help="shards of climbmix to train on, 90 MB each (default: 10)")
    ] = None,
    profile: Annotated[str, typer.Option(help=f"auto, {', '.join(profiles.PROFILES)}")] = "auto",
    work: Annotated[float | None, typer.Option(min=1, max=1e30, help="work per run, instead of measuring it")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="change the profile: DEPTH=6, seq_len=512, seconds=60")
    ] = None,
) -> None:
    """Prepare the data that every experiment trains on.

    Text, tokenizer, packed rows, and the budget of a run: once, in about a minute. Run it again after an interruption,
    or to check the folder.

    \b
    the built-in text             nightshift prepare
    your own text                 nightshift prepare --corpus notes/ --data mine
    a smaller model, a slow GPU   nightshift prepare --set DEPTH=4
    """  # noqa: D301 - for typer, \b keeps the lines of a paragraph
    try:
        chosen = profiles.with_overrides(profiles.find_profile(profile), settings or [])
        scripts = [read_baseline(), *(path.read_text("utf-8", "replace") for path in [Path(SCRIPT)] if path.is_file())]
        known = chosen.constants.keys() & profiles.CPU.constants.keys() | {*re.findall(r"\b[A-Z]\w*", "".join(scripts))}
        if unknown := chosen.constants.keys() - known:
            fail(f"--set {min(unknown)}: train.py has no such constant")
    except KeyError:
        fail(f"no profile {profile}: choose auto, {', '.join(profiles.PROFILES)}")
    except ValueError as error:
        fail(f"--set {' '.join(settings or [])}: {error}")
    if shards and corpus != "climbmix":
        fail("--shards is for --corpus climbmix: leave it out")
    try:
        if not (data / manifest.MANIFEST_FILE).exists():
            with hold_lock(data / LOCK), bars:
                build_folder(data, open_corpus(corpus, shards or 10), chosen, work)
                for stage in bars.tasks:  # some end before their expected total
                    bars.update(stage.id, completed=stage.total)
        found = manifest.load(data, verify=True)
        check_request(found, data, corpus, None if profile == "auto" else profile, settings or [], work, shards)
    except LockedError:
        fail(f"another `{manifest.suggest_command(data)}` is running in {data}: wait for it")
    except DataError as error:
        fail(str(error))
    except OSError as error:  # a full disk, most often
        fail(f"cannot work in {error.filename or data}: {error.strerror or error}")
    print(describe(found, data))


def check_request(
    found: Manifest,
    data: Path,
    corpus: str,
    profile: str | None,
    settings: list[str],
    work: float | None,
    shards: int | None = None,
) -> None:
    """Raise DataError unless the folder was prepared with this corpus, profile, settings, work and shards."""
    if found.corpus != canonicalize(corpus) or profile not in {None, found.profile}:
        content = f"{data} already holds {found.corpus} for profile {found.profile}"
        raise DataError(f"{content}: give another folder with --data")
    held, known = profiles.from_manifest(found), shards
    with suppress(OSError, ValueError, KeyError, TypeError):
        plan = json.loads((data / PLAN).read_text())
        asked, known = plan["profile"], plan.get("shards", shards)  # a small text yields less
        held = replace(held, vocab_size=asked["vocab_size"], eval_tokens=asked["eval_tokens"])
    is_other = profiles.with_overrides(held, settings) != held or work not in (None, found.budget.amount)
    if is_other or shards not in (None, known):
        raise DataError(f"{data} was prepared with other settings: give another folder with --data")


def describe(found: Manifest, data: Path) -> str:
    """Return a sentence about the folder's content."""
    tokens = {split: rows * found.seq_len for split, rows in found.rows.items()}
    work = f"{found.budget.amount:.3g} units of work, " if found.budget.kind == "work" else ""
    return (
        f"{data} is ready: {found.corpus} for profile {found.profile}, {tokens['train']:,} tokens to train on, "
        f"{tokens['val']:,} to validate, {tokens['confirm']:,} to confirm; "
        f"a run has {work}about {found.budget.seconds:g} seconds"
    )


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    print(f"prepare: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    app()
