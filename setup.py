"""Puts train.py and the prompts, which lie at the top of the repository, into the packages of a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PLACES = {"train.py": "prepare/build/train.py", "prompts": "orchestrator/prompts"}


class BuildWithFiles(build_py):
    """Copies the files and folders behind the modules; an editable installation reads them where they are."""

    def run(self):
        super().run()
        for source, place in {} if self.editable_mode else PLACES.items():
            target = Path(self.build_lib, place)
            if Path(source).is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithFiles})
