"""The owner: it answers after the commit, gathers what is waiting, counts what it cannot take, and ends orderly."""

import asyncio
import sqlite3
import threading

import pytest

from coe_server.errors import ConfigError, JournalUnavailable, UnknownDecision
from coe_server.journal.entries import Retention
from coe_server.journal.journal import LONGEST_TEXT, Journal
from coe_server.journal.store import LogFile, Store
from tests.journal.decided import MadeUp, said
from tests.patience import PATIENCE_SECONDS

PLENTY = Retention(100_000, 1e9)


@pytest.fixture
def open_journal(tmp_path):
    opened = []

    def start(**settings):
        journal = Journal(tmp_path / "journal.sqlite3", **{"keep": PLENTY, **settings})
        opened.append(journal)
        return journal

    yield start
    for journal in opened:
        if journal._writer.thread.is_alive():
            journal.stop()


def kept_in(tmp_path):
    store = Store(tmp_path / "journal.sqlite3")
    found = list(store.decisions.everything())
    store.close()
    return found


class Gate:
    """A decision that is not written before the test says so: what comes after it waits."""

    decision_id = "gate"

    def __init__(self):
        self.reached, self.open = threading.Event(), threading.Event()

    def as_json(self):
        self.reached.set()
        assert self.open.wait(PATIENCE_SECONDS)
        return {"decision_id": "gate"}


async def test_feedback_is_answered_when_another_connection_can_read_it(open_journal, tmp_path):
    journal = open_journal()
    journal.record(MadeUp("one"))
    await journal.rate("one", 0.75, "good")
    with sqlite3.connect(tmp_path / "journal.sqlite3") as other:
        assert other.execute("SELECT id, score FROM decisions").fetchall() == [("one", 0.75)]
    other.close()
    assert (await journal.one("one")).comment == "good"
    assert (journal.counts.written, journal.counts.feedback) == (1, 1)


async def test_feedback_never_overtakes_its_decision_however_many_there_are(open_journal, tmp_path):
    journal = open_journal()

    async def decide_and_rate(number):
        journal.record(MadeUp(str(number)))
        await journal.rate(str(number), 0.5, None)

    await asyncio.gather(*(decide_and_rate(number) for number in range(1000)))
    journal.stop()
    assert sorted(int(kept.decision["decision_id"]) for kept in kept_in(tmp_path)) == list(range(1000))
    assert all(kept.score == 0.5 for kept in kept_in(tmp_path))


async def test_what_an_answer_took_is_told_with_its_decision(open_journal):
    journal = open_journal()
    journal.record(MadeUp("one"))
    journal.took("one", {"prompt": 5, "completion": 3})
    assert (await journal.one("one")).tokens == {"prompt": 5, "completion": 3}


async def test_what_waits_is_written_in_one_transaction(open_journal, monkeypatch):
    commits = []
    monkeypatch.setattr(LogFile, "commit", lambda self, commit=LogFile.commit: (commits.append(1), commit(self))[1])
    journal = open_journal()
    await journal.newest(1)
    gate, before = Gate(), len(commits)
    journal.record(gate)
    gate.reached.wait(PATIENCE_SECONDS)
    for number in range(300):
        journal.record(MadeUp(str(number)))
        journal.took(str(number), {"prompt": number})
    gate.open.set()
    await journal.newest(1)
    assert len(commits) - before <= 3


async def test_a_full_queue_drops_decisions_counts_them_and_refuses_feedback(open_journal, tmp_path, caplog):
    journal = open_journal(queue_length=10)
    await journal.newest(1)
    gate = Gate()
    journal.record(gate)
    gate.reached.wait(PATIENCE_SECONDS)
    for number in range(15):
        journal.record(MadeUp(str(number)))
    with pytest.raises(JournalUnavailable, match="is full"):
        await journal.rate("0", 1.0, None)
    gate.open.set()
    journal.stop()
    assert journal.counts.dropped == 5
    assert len(kept_in(tmp_path)) == 11
    assert "are not logged" in caplog.text


async def test_a_file_that_cannot_be_written_is_said_counted_and_gone_on_with(open_journal, monkeypatch, caplog):
    journal = open_journal()

    def full(self):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(LogFile, "commit", full)
        journal.record(MadeUp("lost"))
        with pytest.raises(JournalUnavailable, match="disk is full"):
            await journal.newest(1)
    journal.record(MadeUp("kept"))
    assert [kept.decision["decision_id"] for kept in await journal.newest(9)] == ["kept"]
    assert (journal.counts.dropped, journal.counts.written) == (1, 1)
    assert "1 decisions or answers' tokens are not logged" in caplog.text


async def test_a_decision_is_deleted_with_its_text_and_unknown_ever_after(open_journal, tmp_path):
    journal = open_journal(keeps_prompts=True)
    journal.record(MadeUp("one"), said("my secret question"))
    await journal.rate("one", 1.0, "my secret comment")
    assert b"my secret" in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    await journal.delete("one")
    assert b"my secret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for again in (journal.one("one"), journal.rate("one", 1.0, None), journal.delete("one")):
        with pytest.raises(UnknownDecision):
            await again


async def test_texts_are_kept_only_where_that_was_asked_for_and_not_without_end(open_journal, tmp_path):
    silent = open_journal()
    silent.record(MadeUp("silent"), said("private"))
    silent.stop()
    assert b"private" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    journal = open_journal(keeps_prompts=True)
    journal.record(MadeUp("fits"), said("private"))
    journal.record(MadeUp("too-long"), said("x" * (LONGEST_TEXT + 1)))
    assert (await journal.one("fits")).messages == said("private")
    assert (await journal.one("too-long")).messages is None


async def test_what_is_too_much_goes_while_the_server_runs(open_journal):
    journal = open_journal(keep=Retention(rows=100, seconds=1e9))
    for number in range(1000):
        journal.record(MadeUp(str(number)))
        if number % 100 == 0:
            await journal.newest(1)
    left = await journal.newest(1000)
    assert left[0].decision["decision_id"] == "999"
    assert 100 <= len(left) <= 100 + 256 + 512


async def test_after_stop_everything_is_written_and_nothing_is_taken(open_journal, tmp_path):
    journal = open_journal()
    for number in range(100):
        journal.record(MadeUp(str(number)))
    journal.stop()
    assert len(kept_in(tmp_path)) == 100
    with pytest.raises(JournalUnavailable, match="closed"):
        await journal.rate("1", 1.0, None)
    journal.record(MadeUp("late"))
    assert journal.counts.dropped == 1


async def test_no_call_waits_for_a_failed_owner(open_journal, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: seen.append(failure.exc_type))
    journal = open_journal()

    class Wrong:
        decision_id = "wrong"

        def as_json(self):
            raise KeyError("a mistake of ours")

    journal.record(Wrong())
    with pytest.raises(JournalUnavailable):
        await asyncio.wait_for(_ask_until_refused(journal), PATIENCE_SECONDS)
    journal.stop()
    assert seen == [KeyError]


async def _ask_until_refused(journal):
    while True:
        await journal.newest(1)


def test_a_journal_that_cannot_be_opened_stops_the_start(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(ConfigError, match="or log"):
        Journal(tmp_path / "state" / "journal.sqlite3", PLENTY)
