"""`python -m prepare`: text, tokenizer, packed rows and budget into a data folder, once. Run again, it says so."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from prepare import manifest, profiles
from prepare.machine import list_gpus
from prepare.manifest import BudgetAmount, DataError, Manifest

console = Console(highlight=False, soft_wrap=True)
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    data: Annotated[Path, typer.Option(envvar="NIGHTSHIFT_DATA", help="the folder to fill")] = Path("data"),
    corpus: Annotated[str, typer.Option(help="docstrings, climbmix, or your own text: a path")] = "docstrings",
    shards: Annotated[int, typer.Option(min=1, help="of climbmix, to train on (about 90 MB each)")] = 10,
    profile: Annotated[str, typer.Option(help=f"auto, {', '.join(profiles.PROFILES)}")] = "auto",
    work: Annotated[float | None, typer.Option(min=1, help="work per run, instead of measuring this machine")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="other than the profile's: DEPTH=6, seq_len=512, seconds=60")
    ] = None,
) -> None:
    """Prepare the data that every experiment trains on."""
    try:
        chosen = profiles.find_profile(profile)
        chosen = profiles.with_overrides(chosen, settings or [])
    except KeyError:
        fail(f"no profile {profile}: one of auto, {', '.join(profiles.PROFILES)}")
    except ValueError as error:
        fail(str(error))
    try:
        if not (data / manifest.MANIFEST_FILE).exists():
            probe = chosen.budget.kind == "time" and chosen is not profiles.H100 and not settings and list_gpus() != []
            prepare(data, corpus, shards, chosen, work, probe=probe)
        found = manifest.load(data, verify=True)
        expect(found, data, corpus, None if profile == "auto" else profile, settings or [])
    except DataError as error:
        fail(str(error))
    except OSError as error:  # a full disk, most often
        fail(f"cannot work in {error.filename or data}: {error.strerror or error}")
    console.print(describe(found, data))


def prepare(
    data: Path, source: str, shards: int, profile: profiles.Profile, work: float | None, *, probe: bool
) -> None:
    from prepare.build.folder import build_folder, lock_folder
    from prepare.corpus.open import open_corpus

    budget = BudgetAmount(kind="work", amount=work, seconds=profile.budget.seconds) if work else None
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with lock_folder(data), Bars(*columns, console=console) as bars:
        stages: dict[str, TaskID] = {}

        def progress(stage: str, share: float) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=1.0)
            bars.update(stages[stage], completed=share)

        build_folder(data, open_corpus(source, shards, progress), profile, budget, progress, probe=probe)
        for task in stages.values():
            bars.update(task, completed=1.0)


def expect(found: Manifest, data: Path, corpus: str, profile: str | None, settings: list[str]) -> None:
    from prepare.corpus.open import canonicalize

    if found.corpus != canonicalize(corpus) or profile not in {None, found.profile}:
        raise DataError(
            f"{data} already holds {found.corpus} for profile {found.profile}: give another folder with --data"
        )
    held = profiles.from_manifest(found)
    if profiles.with_overrides(held, settings) != held:
        raise DataError(f"{data} was prepared with other settings: give another folder with --data")


def describe(found: Manifest, data: Path) -> str:
    tokens = {split: rows * found.seq_len for split, rows in found.rows.items()}
    work = f"{found.budget.amount:.3g} units of work, " if found.budget.kind == "work" else ""
    return (
        f"{data} is ready: {found.corpus} for profile {found.profile}, {tokens['train']:,} tokens to train on, "
        f"{tokens['val']:,} to validate, {tokens['confirm']:,} to confirm; "
        f"a run has {work}about {found.budget.seconds:g} seconds"
    )


def fail(message: str) -> NoReturn:
    print(f"prepare: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    app()
