"""The decision log that settings ask for."""

from __future__ import annotations

from pathlib import Path

from coe_server.config import ServerConfig
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal

SECONDS_PER_DAY = 86_400.0


def build_journal(config: ServerConfig) -> Journal | None:
    """The decision log, open and ready; None where no decisions are kept. Raises ConfigError if it cannot be opened."""
    if not config.log.decisions:
        return None
    keep = Retention(config.log.keep_rows, config.log.keep_days * SECONDS_PER_DAY)
    journal = Journal(journal_file(config), keep, keeps_prompts=config.log.prompts)
    journal.start()
    return journal


def journal_file(config: ServerConfig) -> Path:
    return config.state_directory / "journal.sqlite3"
