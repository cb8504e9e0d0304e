"""`coe journal export`: the decision log as files for coe-train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coe_server.build.service import journal_file
from coe_server.commands.terminal import ConfigPath, mistakes_as_sentences
from coe_server.config.schema import load_config
from coe_server.journal.export import export as export_journal
from coe_server.system.files import require_writable_folder


def export(
    config: ConfigPath,
    out: Annotated[Path, typer.Option(help="Folder for the files; those of an earlier export are replaced.")],
) -> None:
    """Export the decision log for coe-train. The server may be running.

    feedback.jsonl: every routed decision with its rating, for `coe-train map ARTIFACT --feedback`. prompts.jsonl and
    outcomes.jsonl: kept prompts (log.prompts: true) and their ratings as outcomes, for `coe-train fit`.

    Example: coe journal export serve.yaml --out journal
    """
    with mistakes_as_sentences():
        require_writable_folder("--out", out)
        found = export_journal(journal_file(load_config(config)), out)
    Console().print(
        f"{found.feedback} decisions, {found.rated} of them rated; {found.prompts} prompts, {found.outcomes} outcomes"
        f" -> {out}",
        soft_wrap=True,
    )
