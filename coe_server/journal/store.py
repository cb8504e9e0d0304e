"""Decisions, what their answers took, and feedback in one SQLite file, and its export for training.

Used by one thread at a time; knows nothing of queues or of HTTP.

Every commit is on the disk when it returns (WAL with synchronous=FULL): what was acknowledged survives SIGKILL and a
power cut. Texts lie in pages of their own, which are overwritten with zeros when they are deleted (secure_delete); then
the write-ahead log is cut to nothing.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe_server.errors import ConfigError, JournalUnavailable, UnknownDecision
from coe_server.journal.entries import PAGE_SIZE, Entry, Feedback, Kept, Retention, packed, unpacked
from coe_server.system.files import open_private, private_folder, replacing

VERSION = 3  # 1 had no tokens, 2 no owners
BUSY_SECONDS = 5.0  # for another process that reads, an export say

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
# Of its own: many to a page, where a decision's row would be written once more for them.
_TOKENS = "CREATE TABLE IF NOT EXISTS tokens (seq INTEGER PRIMARY KEY, stated TEXT NOT NULL);"
_OWNERS = "ALTER TABLE decisions ADD COLUMN owner TEXT;"
_OWN = "id = ? AND (? IS NULL OR owner = ?)"
_KEPT = """
SELECT time, decision, prompts.packed, score, comments.packed, tokens.stated
FROM decisions LEFT JOIN prompts USING (seq) LEFT JOIN comments USING (seq) LEFT JOIN tokens USING (seq)
"""
_EVERYTHING = ("prompts", "comments", "tokens", "decisions")
_WITH_TEXTS = frozenset(("prompts", "comments"))


class LogFile:
    """The SQLite file at `path`: transactions and erasure. Raises ConfigError if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            private_folder(path.parent)
            log = path.with_name(f"{path.name}-wal")
            self._traces = log.exists() and log.stat().st_size > 0  # a killed server may not have erased all of them
            os.close(open_private(path, os.O_RDWR))  # prompts are for the server's own user
            # autocommit: transactions are begun and ended here and nowhere else
            self.sql = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                _prepare(self.sql, path)
            except BaseException:
                self.sql.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"{path}: cannot keep the decision log ({error}); give state_directory another place, or set"
                " log.decisions: false"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is changed within is on the disk at the end; after an error nothing of it is."""
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
        """After a commit: what was deleted is in no file. Raises JournalUnavailable while another process reads."""
        if not self._traces:
            return
        (busy, _, _) = self.sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise JournalUnavailable("deleted, but another program reads the decision log: its text is not erased yet")
        self._traces = False


class Store:
    """The decisions in the file at `path`, which is created where there is none. Raises ConfigError as `LogFile`."""

    def __init__(self, path: Path) -> None:
        self.file = LogFile(path)
        self._sql = self.file.sql

    def add(self, entry: Entry) -> None:
        """A decision; one that changed hands since replaces what was written of it."""
        (seq,) = self._sql.execute(
            "INSERT INTO decisions (id, time, decision, owner) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET decision = excluded.decision RETURNING seq",
            (entry.decision.decision_id, entry.time, json.dumps(entry.decision.as_json()), entry.owner),
        ).fetchone()
        if entry.messages is not None:
            self._sql.execute("INSERT OR IGNORE INTO prompts VALUES (?, ?)", (seq, _packed(list(entry.messages))))

    def took(self, decision_id: str, tokens: Mapping[str, int]) -> None:
        """What the answer to a decision stated, by kind; nothing where the decision has been deleted since."""
        self._sql.execute(
            "INSERT OR REPLACE INTO tokens SELECT seq, ? FROM decisions WHERE id = ?", (json.dumps(tokens), decision_id)
        )

    def rate(self, feedback: Feedback, owner: str | None = None) -> None:
        """The last word on a decision; with an `owner` on one of its own. Raises UnknownDecision."""
        seq = _seq(self._sql, feedback.decision_id, owner)
        self._sql.execute(
            "UPDATE decisions SET score = ?, feedback_time = ? WHERE seq = ?", (feedback.score, feedback.time, seq)
        )
        self.file.erase("comments", "seq = ?", seq)
        if feedback.comment is not None:
            self._sql.execute("INSERT INTO comments VALUES (?, ?)", (seq, _packed(feedback.comment)))

    def delete(self, decision_id: str, owner: str | None = None) -> None:
        """The decision, its text, its tokens and its feedback; as `rate`. Raises UnknownDecision."""
        seq = _seq(self._sql, decision_id, owner)
        for table in _EVERYTHING:
            self.file.erase(table, "seq = ?", seq)

    def expire(self, keep: Retention, now: float) -> None:
        """Deletes what is too old or too much."""
        row = self._sql.execute(
            "SELECT max(seq) FROM decisions WHERE time < ? OR seq <= (SELECT max(seq) FROM decisions) - ?",
            (now - keep.seconds, keep.rows),
        ).fetchone()
        for table in _EVERYTHING:
            self.file.erase(table, "seq <= ?", row[0] or 0)

    def one(self, decision_id: str, owner: str | None = None) -> Kept:
        """One decision; with an `owner` one of its own. Raises UnknownDecision."""
        row = self._sql.execute(f"{_KEPT} WHERE {_OWN}", (decision_id, owner, owner)).fetchone()
        if row is None:
            raise _unknown(decision_id)
        return _kept(row)

    def newest(self, count: int) -> list[Kept]:
        """The last decisions, newest first."""
        return [_kept(row) for row in self._sql.execute(f"{_KEPT} ORDER BY seq DESC LIMIT ?", (count,))]

    def everything(self) -> Iterator[Kept]:
        """Every decision, oldest first."""
        for row in self._sql.execute(f"{_KEPT} ORDER BY seq"):
            yield _kept(row)

    def close(self) -> None:
        self._sql.close()


def _prepare(sql: sqlite3.Connection, path: Path) -> None:
    for pragma in (f"page_size = {PAGE_SIZE}", "journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
        sql.execute(f"PRAGMA {pragma}")
    (version,) = sql.execute("PRAGMA user_version").fetchone()
    if version == 0:
        sql.executescript(f"BEGIN IMMEDIATE; {_TABLE} {_TOKENS} PRAGMA user_version = {VERSION}; COMMIT")
    elif version in {1, 2}:
        sql.executescript(f"BEGIN IMMEDIATE; {_TOKENS} {_OWNERS} PRAGMA user_version = {VERSION}; COMMIT")
    elif version != VERSION:
        raise ConfigError(f"{path}: is a journal of version {version}, and this server writes {VERSION}")


def _seq(sql: sqlite3.Connection, decision_id: str, owner: str | None) -> int:
    row = sql.execute(f"SELECT seq FROM decisions WHERE {_OWN}", (decision_id, owner, owner)).fetchone()
    if row is None:
        raise _unknown(decision_id)
    return int(row[0])


def _unknown(decision_id: str) -> UnknownDecision:
    return UnknownDecision(
        f"there is no decision '{decision_id}' in the log: it was never made here, has been deleted or is too old"
        " (log.keep_rows, log.keep_days)",
        "decision_id",
    )


def _packed(words: object) -> bytes:
    """As JSON in ASCII: half of a surrogate pair, which is no Unicode, is kept as well."""
    return packed(json.dumps(words))


def _kept(row: tuple[float, str, bytes | None, float | None, bytes | None, str | None]) -> Kept:
    time, decision, messages, score, comment, tokens = row
    return Kept(
        time,
        json.loads(decision),
        None if messages is None else json.loads(unpacked(messages)),
        score,
        None if comment is None else json.loads(unpacked(comment)),
        None if tokens is None else json.loads(tokens),
    )


FEEDBACK, PROMPTS, OUTCOMES = "feedback.jsonl", "prompts.jsonl", "outcomes.jsonl"


@dataclass(frozen=True, slots=True)
class Exported:
    """How many lines are in each file."""

    feedback: int
    rated: int
    prompts: int
    outcomes: int


def export(journal: Path, folder: Path) -> Exported:
    """Writes the three files, for their owner alone, into `folder`. A server may go on writing. Raises ConfigError."""
    if not journal.is_file():
        raise ConfigError(f"{journal}: there is no decision log; a server with log.decisions: true writes one")
    store = Store(journal)
    try:
        kept = list(store.everything())
    finally:
        store.close()
    private_folder(folder)
    feedback = [line for one in kept if (line := _feedback(one)) is not None]
    texts = [one for one in kept if one.messages]
    prompts = [{"prompt_id": one.decision["decision_id"], "messages": one.messages} for one in texts]
    outcomes = [_outcome(one) for one in texts if one.score is not None]
    for name, lines in ((FEEDBACK, feedback), (PROMPTS, prompts), (OUTCOMES, outcomes)):
        with replacing(folder / name) as out:
            out.writelines(_as_lines(lines))
    rated = sum(line["score"] is not None for line in feedback)
    return Exported(len(feedback), rated, len(prompts), len(outcomes))


def _feedback(one: Kept) -> dict[str, Any] | None:
    """None for an expert that was asked for by name: there was no choice, and nothing was expected.

    A decision is `inside` where its category was believed: elsewhere the experts' overall means decided.
    """
    decision = one.decision
    probabilities: Mapping[str, float] = decision["probabilities"]
    if not probabilities:
        return None
    return {
        "decision_id": decision["decision_id"],
        "router_version": decision["router_version"],
        "expert": decision["expert"],
        "inside": decision["category"] == max(probabilities, key=lambda name: probabilities[name]),
        "probabilities": probabilities,
        "expected_score": decision["ranking"][0]["expected_score"],
        "score": one.score,
        "tokens": one.tokens,
    }


def _outcome(one: Kept) -> dict[str, Any]:
    """In the words of `coe-train collect`: what an answer took is what was written of it."""
    return {
        "prompt_id": one.decision["decision_id"],
        "expert": one.decision["expert"],
        "score": one.score,
        "output_tokens": (one.tokens or {}).get("completion"),
    }


def _as_lines(values: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(value, ensure_ascii=True) + "\n" for value in values)
