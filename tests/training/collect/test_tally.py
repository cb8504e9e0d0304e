"""What `coe-train collect` prints of each expert."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

from rich.console import Console

from router_training.collect.progress import ExpertTally, Tally, show_tally
from router_training.data.provenance import FAULTS, Fault


def told(faults: Counter[Fault]) -> str:
    experts = {name: ExpertTally(answers=1_000, faults=faults) for name in ("generalist", "coder", "maths")}
    console = Console(file=io.StringIO(), width=80)
    show_tally(Tally(experts), Path("out.jsonl"), Path("raw.jsonl"), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_no_heading_is_cut_in_80_columns() -> None:
    said = told(Counter(dict.fromkeys(FAULTS, 3)))
    assert "…" not in said
    for word in ("expert", "answers", *FAULTS, "tokens", "generalist"):
        assert word in said


def test_faults_that_no_expert_has_take_no_column() -> None:
    said = told(Counter({"refused": 3}))
    assert "refused" in said
    assert "truncated" not in said
    assert "unparsed" not in said
