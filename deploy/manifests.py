"""Writes deploy/kubernetes/*.yaml from the Helm chart, for clusters where Helm is not used: python -m deploy.manifests

The chart keeps to the part of Helm's template language that is known here: values, `quote`, `toJson`, `indent N`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
CHART = FOLDER / "helm/coe"
WRITTEN = FOLDER / "kubernetes"

_HEADER = "# Written from deploy/helm/coe by `make manifests`: change it there, or your copy here.\n"
_ACTION = re.compile(r"\{\{ \.Values((?:\.\w+)+)(?: \| (quote|toJson|indent (\d+)))? \}\}")


def main() -> None:
    write_manifests(WRITTEN)


def write_manifests(folder: Path) -> None:
    """One file for each template, with the chart's own values."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for template in templates():
        (folder / template.name).write_text(_HEADER + rendered(template.read_text(), values))


def templates() -> list[Path]:
    """The chart's templates, one for each file of manifests."""
    return sorted((CHART / "templates").iterdir())


def rendered(template: str, values: dict[str, Any]) -> str:
    """The template with its values. Raises ValueError for what this program does not know."""
    text = _ACTION.sub(lambda action: _filtered(action, values), template)
    if "{{" in (unknown := _ACTION.sub("", template)):
        raise ValueError(f"unknown template syntax: {unknown[unknown.index('{{') :].splitlines()[0]}")
    return text


def _filtered(action: re.Match[str], values: dict[str, Any]) -> str:
    path, name, width = action.groups()
    value: Any = values
    for key in path[1:].split("."):
        value = value[key]
    if name is None:
        return str(value)
    if width is None:
        return json.dumps(value, separators=(",", ":"), sort_keys=True)  # of a string also what `quote` makes
    return "\n".join(" " * int(width) + line for line in value.split("\n"))


if __name__ == "__main__":
    main()
