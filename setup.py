"""Beside pyproject.toml: the explained configurations become data of the package, for `coe config --example`."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

EXPLAINED = ("serve", "routes", "train", "collect")


class WithExamples(build_py):
    def run(self) -> None:
        super().run()
        folder = Path(self.build_lib) / "coe_server/examples"
        if self.editable_mode:  # then they are read where they are
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in EXPLAINED:
            copyfile(f"configs/{name}.yaml", folder / f"{name}.yaml")


setup(cmdclass={"build_py": WithExamples})
