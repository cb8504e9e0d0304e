"""The page of benchmark tables: each script replaces its own table and touches no other."""

from __future__ import annotations

from pathlib import Path

from benchmarks.document import document


def test_a_table_is_added_once_and_replaced_after_that_and_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    document("tiers", "old \\1 rows", page)
    document("switching", "other rows", page)
    document("tiers", "new \\1 rows\n", page)
    text = page.read_text()
    assert text.startswith("# Benchmarks\n")
    assert "old" not in text
    assert text.endswith(
        "<!-- tiers: begin -->\nnew \\1 rows\n<!-- tiers: end -->\n\n"
        "<!-- switching: begin -->\nother rows\n<!-- switching: end -->\n"
    )
