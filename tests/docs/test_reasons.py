"""Every reason of a decision is explained: in the documentation and on the page."""

from __future__ import annotations

import re
from pathlib import Path

from coe_server.routing.decision import REASONS

ROOT = Path(__file__).parents[2]


def test_every_reason_is_explained_in_the_documentation() -> None:
    text = (ROOT / "docs/operate.md").read_text(encoding="utf-8")
    table = text.partition("| reason | this expert was chosen because |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(REASONS)


def test_every_reason_is_explained_on_the_page() -> None:
    text = (ROOT / "coe_server/http/routes/static/playground.js").read_text(encoding="utf-8")
    table = text.partition("const REASONS = {")[2].partition("\n};")[0]
    assert set(re.findall(r"^  (\w+):", table, flags=re.MULTILINE)) == set(REASONS)
