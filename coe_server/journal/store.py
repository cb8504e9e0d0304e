"""Decisions, their token counts and feedback in one SQLite file.

For one thread at a time. Every commit is on disk when it returns (WAL with synchronous=FULL), so it survives SIGKILL
and a power failure. Texts are stored on separate pages, which are zeroed when they are deleted (secure_delete);
afterwards the write-ahead log is truncated.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from coe_server.errors import ConfigError, JournalUnavailable, UnknownDecision
from coe_server.journal.entries import PAGE_SIZE, Compared, Entry, Feedback, Kept, Retention, packed, unpacked
from coe_server.system.files import open_private, private_folder

VERSION = 4  # 1 had no tokens, 2 no owners, 3 one rating for each decision
BUSY_SECONDS = 5.0  # wait for another process that reads, such as an export

_TABLE = """
CREATE TABLE decisions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    time REAL NOT NULL,
    decision TEXT NOT NULL,
    score REAL,
    feedback_time REAL,
    owner TEXT
);
CREATE INDEX decisions_by_time ON decisions (time);
CREATE TABLE prompts (seq INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE comments (seq INTEGER PRIMARY KEY, packed BLOB NOT NULL);
"""
# A separate table: an update of the decision's row would write the whole row again.
_TOKENS = "CREATE TABLE IF NOT EXISTS tokens (seq INTEGER PRIMARY KEY, stated TEXT NOT NULL);"
# One row for each source of ratings, and two scores of a prompt that two experts answered.
_RATINGS = """
CREATE TABLE IF NOT EXISTS ratings (seq INTEGER, source TEXT, score REAL NOT NULL, PRIMARY KEY (seq, source));
CREATE TABLE IF NOT EXISTS compared (seq INTEGER PRIMARY KEY, expert TEXT, pair TEXT NOT NULL);
INSERT INTO ratings SELECT seq, 'score', score FROM decisions WHERE score IS NOT NULL;
"""
_OWNERS = "ALTER TABLE decisions ADD COLUMN owner TEXT;"
_OWN = "id = ? AND (? IS NULL OR owner = ?)"
_KEPT = """
SELECT time, decision, prompts.packed, decisions.score, comments.packed, tokens.stated, owner,
    (SELECT json_group_object(source, score) FROM ratings WHERE ratings.seq = decisions.seq),
    compared.expert, compared.pair
FROM decisions LEFT JOIN prompts USING (seq) LEFT JOIN comments USING (seq) LEFT JOIN tokens USING (seq)
    LEFT JOIN compared USING (seq)
"""
_EVERYTHING = ("prompts", "comments", "tokens", "ratings", "compared", "decisions")
_WITH_TEXTS = frozenset(("prompts", "comments"))


class LogFile:
    """The SQLite file at `path`: transactions and erasure. Raises ConfigError if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            private_folder(path.parent)
            log = path.with_name(f"{path.name}-wal")
            self._traces = log.exists() and log.stat().st_size > 0  # left by a server that was killed
            os.close(open_private(path, os.O_RDWR))  # only the server's user may read prompts
            # autocommit: only this class begins and ends transactions
            self.sql = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                _prepare(self.sql, path)
            except BaseException:
                self.sql.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"{path}: cannot open the decision log ({error}); set another state_directory, or log.decisions: false"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the changes made in this context, synced to disk; after an error roll them back."""
        self.sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.commit()
        except BaseException:
            with suppress(sqlite3.Error):
                if self.sql.in_transaction:
                    self.sql.execute("ROLLBACK")
            raise

    def commit(self) -> None:
        self.sql.execute("COMMIT")

    def erase(self, table: str, condition: str, seq: int) -> None:
        gone = self.sql.execute(f"DELETE FROM {table} WHERE {condition}", (seq,)).rowcount
        self._traces = self._traces or (gone > 0 and table in _WITH_TEXTS)

    def erase_traces(self) -> None:
        """Truncate the write-ahead log after a commit, so that no deleted text is left in a file.

        Raises JournalUnavailable while another process reads.
        """
        if not self._traces:
            return
        (busy, _, _) = self.sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise JournalUnavailable("deleted, but not yet erased from disk: another program reads the decision log")
        self._traces = False


class Store:
    """The log in the file at `path`, created if missing; `decisions` reads it. Raises ConfigError as `LogFile` does."""

    def __init__(self, path: Path) -> None:
        self.file = LogFile(path)
        self._sql = self.file.sql
        self.decisions = Decisions(self._sql)

    def add(self, entry: Entry) -> None:
        """Insert a decision, or replace it after a fallback to another expert."""
        (seq,) = self._sql.execute(
            "INSERT INTO decisions (id, time, decision, owner) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET decision = excluded.decision RETURNING seq",
            (entry.decision.decision_id, entry.time, json.dumps(entry.decision.as_json()), entry.owner),
        ).fetchone()
        if entry.messages is not None:
            self._sql.execute("INSERT OR IGNORE INTO prompts VALUES (?, ?)", (seq, _packed(list(entry.messages))))

    def took(self, decision_id: str, tokens: Mapping[str, int]) -> None:
        """Store the token counts of a decision's answer; ignored if the decision has been deleted."""
        self._sql.execute(
            "INSERT OR REPLACE INTO tokens SELECT seq, ? FROM decisions WHERE id = ?", (json.dumps(tokens), decision_id)
        )

    def rate(self, feedback: Feedback, owner: str | None = None) -> None:
        """Store feedback, replacing earlier. Raises UnknownDecision; with `owner` also for another key's decision."""
        seq = _seq(self._sql, feedback.decision_id, owner)
        self._sql.execute(
            "UPDATE decisions SET score = ?, feedback_time = ? WHERE seq = ?", (feedback.score, feedback.time, seq)
        )
        self._sql.execute("INSERT OR REPLACE INTO ratings VALUES (?, ?, ?)", (seq, feedback.source, feedback.score))
        self.file.erase("comments", "seq = ?", seq)
        if feedback.comment is not None:
            self._sql.execute("INSERT INTO comments VALUES (?, ?)", (seq, _packed(feedback.comment)))

    def compare(self, found: Compared) -> None:
        """Store the scores of two answers; ignored if the decision has been deleted."""
        pair = {name: getattr(found, name) for name in ("score", "own_score", "expected", "own_expected")}
        self._sql.execute(
            "INSERT OR REPLACE INTO compared SELECT seq, ?, ? FROM decisions WHERE id = ?",
            (found.expert, json.dumps(pair), found.decision_id),
        )

    def delete(self, decision_id: str, owner: str | None = None) -> None:
        """Delete a decision with its text, tokens and feedback; `owner` as in `rate`. Raises UnknownDecision."""
        seq = _seq(self._sql, decision_id, owner)
        for table in _EVERYTHING:
            self.file.erase(table, "seq = ?", seq)

    def expire(self, keep: Retention, now: float) -> None:
        """Delete the decisions that are beyond the limits."""
        row = self._sql.execute(
            "SELECT max(seq) FROM decisions WHERE time < ? OR seq <= (SELECT max(seq) FROM decisions) - ?",
            (now - keep.seconds, keep.rows),
        ).fetchone()
        for table in _EVERYTHING:
            self.file.erase(table, "seq <= ?", row[0] or 0)

    def close(self) -> None:
        self._sql.close()


class Decisions:
    """The decisions in a log file, as they are read back."""

    def __init__(self, sql: sqlite3.Connection) -> None:
        self._sql = sql

    def one(self, decision_id: str, owner: str | None = None) -> Kept:
        """One decision; `owner` as in `Store.rate`. Raises UnknownDecision."""
        row = self._sql.execute(f"{_KEPT} WHERE {_OWN}", (decision_id, owner, owner)).fetchone()
        if row is None:
            raise _unknown(decision_id)
        return _kept(row)

    def newest(self, count: int) -> list[Kept]:
        """The last decisions, newest first."""
        return [_kept(row) for row in self._sql.execute(f"{_KEPT} ORDER BY seq DESC LIMIT ?", (count,))]

    def rated(self) -> Iterator[Kept]:
        """The decisions with ratings or comparisons, oldest first."""
        either = "decisions.score IS NOT NULL OR compared.seq IS NOT NULL"
        for row in self._sql.execute(f"{_KEPT} WHERE {either} ORDER BY seq"):
            yield _kept(row)

    def everything(self) -> Iterator[Kept]:
        """Every decision, oldest first."""
        for row in self._sql.execute(f"{_KEPT} ORDER BY seq"):
            yield _kept(row)


def _prepare(sql: sqlite3.Connection, path: Path) -> None:
    for pragma in (f"page_size = {PAGE_SIZE}", "journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
        sql.execute(f"PRAGMA {pragma}")
    (version,) = sql.execute("PRAGMA user_version").fetchone()
    if version == 0:
        sql.executescript(f"BEGIN IMMEDIATE; {_TABLE} {_TOKENS} {_RATINGS} PRAGMA user_version = {VERSION}; COMMIT")
    elif version in {1, 2, 3}:
        owners = _OWNERS if version < 3 else ""
        sql.executescript(f"BEGIN IMMEDIATE; {_TOKENS} {owners} {_RATINGS} PRAGMA user_version = {VERSION}; COMMIT")
    elif version != VERSION:
        told = f"is a journal of version {version}; this server needs version {VERSION}"
        raise ConfigError(f"{path}: {told}; set another state_directory")


def _seq(sql: sqlite3.Connection, decision_id: str, owner: str | None) -> int:
    row = sql.execute(f"SELECT seq FROM decisions WHERE {_OWN}", (decision_id, owner, owner)).fetchone()
    if row is None:
        raise _unknown(decision_id)
    return int(row[0])


def _unknown(decision_id: str) -> UnknownDecision:
    return UnknownDecision(
        f"there is no decision '{decision_id}' in the log: the id is wrong, or it was deleted or has expired"
        " (log.keep_rows, log.keep_days)",
        "decision_id",
    )


def _packed(words: object) -> bytes:
    """JSON in ASCII, so that lone surrogates are kept, too."""
    return packed(json.dumps(words))


def _kept(row: tuple[Any, ...]) -> Kept:
    time, decision, messages, score, comment, tokens, owner, ratings, expert, pair = row
    return Kept(
        time,
        json.loads(decision),
        None if messages is None else json.loads(unpacked(messages)),
        score,
        None if comment is None else json.loads(unpacked(comment)),
        None if tokens is None else json.loads(tokens),
        json.loads(ratings),
        None if expert is None else {"expert": expert, **json.loads(pair)},
        owner,
    )
