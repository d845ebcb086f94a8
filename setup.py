"""Puts train.py and the prompts, which lie at the top of the repository, into the packages of a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithFiles(build_py):
    """Copies the files and folders behind the modules; an editable installation reads them where they are."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copyfile("train.py", Path(self.build_lib, "prepare/build/train.py"))
            shutil.copytree("prompts", Path(self.build_lib, "orchestrator/prompts"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithFiles})
