"""`coe config`: the configurations that explain every key, which come with the package."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import coe_server


class Example(StrEnum):
    """The files that have one."""

    SERVE = "serve"
    ROUTES = "routes"
    TRAIN = "train"
    COLLECT = "collect"


def config(
    example: Annotated[
        Example,
        typer.Option("--example", help="serve: the server; routes: a router from examples; train, collect: coe-train."),
    ],
) -> None:
    """Print a configuration that explains every key: what it does, its unit and its default.

    Examples: coe config --example serve; coe config --example train > train.yaml
    """
    typer.echo(example_text(example), nl=False)


def example_text(example: Example) -> str:
    """As installed, or in a checkout as it stands there."""
    package = Path(coe_server.__file__).parent
    installed = package / f"examples/{example}.yaml"
    found = installed if installed.is_file() else package.parent / f"configs/{example}.yaml"
    return found.read_text(encoding="utf-8")
