"""An artifact as it will serve: written, loaded and checked, in a temporary folder. Leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

from coe_server.routing import artifact as artifacts
from coe_server.routing.artifact import Artifact, HeldOut


def as_saved(artifact: Artifact, held_out: HeldOut, beside: Path) -> Artifact:
    """The artifact written to a temporary folder in `beside` and loaded with every check of the server."""
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".coe-train.") as workplace:
        folder = Path(workplace) / "draft"
        artifacts.save(artifact, held_out, None, folder)
        return artifacts.load(folder)
