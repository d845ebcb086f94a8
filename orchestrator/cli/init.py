"""The command that makes a folder ready: a training script to start from, nightshift.toml, and lines of .gitignore."""

from os.path import relpath
from pathlib import Path

import typer

from orchestrator.cli.options import Paths, UsageError
from orchestrator.cli.task_file import NAME, find_main, has_own_prepare, read_task
from orchestrator.repo import write_git
from prepare.build.calibration import read_baseline
from prepare.command import write_command
from prepare.files import read_written
from prepare.manifest import MANIFEST_FILE, load
from prepare.profiles import apply_to_script, find_profile, from_manifest


def init(context: typer.Context) -> None:
    """Write a train.py to start from.

    Its constants fit the prepared data or, where there are none yet, this machine. Also writes a nightshift.toml, and
    adds data/ and sessions/ to .gitignore. A file that is there is never replaced.
    """
    paths: Paths = context.obj
    script, folder = paths.script, paths.script.parent.resolve()
    top = next((at for at in (folder, *folder.parents) if (at / ".git").exists()), None)
    is_here = Path.cwd().is_relative_to(top or folder)  # else data and sessions lie outside the repository
    ignore = Path(".gitignore") if is_here else script.with_name(".gitignore")
    prepared = (paths.data / MANIFEST_FILE).exists()
    profile = from_manifest(load(paths.data)) if prepared else find_profile("auto")
    source = apply_to_script(read_baseline(), profile)
    if has_own_prepare(script):
        raise UsageError("the script would import the prepare which lies here: choose another folder")
    find_main(script, read_task(script))
    known = read_written(ignore, "replace") if ignore.exists() else ""
    try:
        with script.open("x", encoding="utf-8") as file:
            file.write(source)
    except FileExistsError:
        raise UsageError(f"{script} is there already and stays as it is: choose another name with --script") from None
    if not (path := script.with_name(NAME)).exists():
        text = (Path(__file__).parent / "templates" / NAME).read_text("utf-8")
        path.write_text(text.replace("train.py", script.name), "utf-8")
    missing = {"data", "sessions"} - {line.rstrip().strip("/") for line in known.splitlines()}
    with ignore.open("a", encoding="utf-8") as file:
        file.write("\n" * (known[-1:] > "\n") + "".join(f"/{at}/\n" for at in sorted(missing)))
    begin = "" if top else f"{write_git(script, 'init')}\n"
    print(f"{script} is a script for profile {profile.name}. To start from it:\n{begin}", end="")
    print(write_git(script, "add", script.name, NAME, relpath(ignore, script.parent)))
    print(write_git(script, "commit", "-m", "a script to start from"))
    data = ["--data", str(paths.data)] if paths.data != Paths.data else []
    print("" if prepared else f"{write_command('prepare', *data)}\n", end="")
    words = [*data, *(["--script", str(script)] if script != Paths.script else [])]
    print(write_command("--offline", "--hours", "0.15", *words))
