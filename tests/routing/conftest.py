from __future__ import annotations

from pathlib import Path

import pytest

from coe_server.routing import artifact as artifacts
from tests.routing.small_artifact import held_out, small_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a valid artifact."""
    path = tmp_path / "router"
    artifacts.save(small_artifact(), held_out(), {"score": 0.5}, path)
    return path
