"""The file: what is committed stays, what is deleted is gone from every byte."""

import random
import sqlite3
import stat
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import ConfigError, JournalUnavailable, UnknownDecision
from coe_server.journal.entries import PAGE_SIZE, Entry, Feedback, Retention, packed, unpacked
from coe_server.journal.store import Store
from tests.examples import examples
from tests.journal.decided import MadeUp, said


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "journal.sqlite3")
    yield opened
    opened.close()


def commit(store, *acts):
    with store.file.transaction():
        for act in acts:
            act()
    store.file.erase_traces()


def add(store, name, text=None, moment=0.0, **fields):
    commit(store, lambda: store.add(Entry(moment, MadeUp(name, fields), said(text) if text else None)))


def rate(store, name, score, comment=None):
    commit(store, lambda: store.rate(Feedback(name, score, comment, 0.0)))


def bytes_of(store):
    return b"".join(path.read_bytes() for path in store.file.path.parent.glob(store.file.path.name + "*"))


def test_what_is_written_is_read_back_by_the_next_server(tmp_path):
    first = Store(tmp_path / "j")
    commit(first, lambda: first.add(Entry(7.0, MadeUp("one", {"category": "français"}), said("bonjour", "ça va?"))))
    rate(first, "one", 0.25, "meh")
    first.close()
    second = Store(tmp_path / "j")
    kept = second.decisions.one("one")
    second.close()
    assert (kept.time, kept.score, kept.comment) == (7.0, 0.25, "meh")
    assert kept.decision["category"] == "français"
    assert [turn["content"] for turn in kept.messages] == ["bonjour", "ça va?"]
    assert "bonjour" not in str(kept.as_json())


def test_the_last_word_counts_and_there_is_only_one(store):
    add(store, "one")
    for score in (0.0, 1.0, 0.5):
        rate(store, "one", score)
    assert [kept.score for kept in store.decisions.everything()] == [0.5]


def test_a_decision_that_changed_hands_is_still_one(store):
    add(store, "one", "a text", expert="a")
    rate(store, "one", 0.5)
    add(store, "one", "a text", expert="b")
    assert [(kept.decision["expert"], kept.score) for kept in store.decisions.everything()] == [("b", 0.5)]


def took(store, name, **tokens):
    commit(store, lambda: store.took(name, tokens))


def test_what_an_answer_took_stays_with_its_decision_also_where_that_changes_hands(store):
    add(store, "one", expert="a")
    add(store, "other")
    took(store, "one", prompt=5, completion=1)
    took(store, "one", prompt=5, completion=3)  # an expert that was asked once more
    add(store, "one", expert="b")
    kept = store.decisions.one("one")
    assert (kept.tokens, kept.decision["expert"]) == ({"prompt": 5, "completion": 3}, "b")
    assert kept.as_json()["tokens"] == {"prompt": 5, "completion": 3}
    assert store.decisions.one("other").as_json()["tokens"] is None


def test_tokens_go_with_their_decision_and_do_not_come_back(store):
    for number in range(4):
        add(store, str(number), moment=float(number))
        took(store, str(number), prompt=number)
    commit(store, lambda: store.delete("3"), lambda: store.took("3", {"prompt": 666}))
    commit(store, lambda: store.expire(Retention(100, 8.5), now=10.0))
    add(store, "4", moment=4.0)
    assert [(kept.decision["decision_id"], kept.tokens) for kept in store.decisions.everything()] == [
        ("2", {"prompt": 2}),
        ("4", None),
    ]
    assert store.file.sql.execute("SELECT count(*) FROM tokens").fetchone() == (1,)


VERSION_1 = """
CREATE TABLE decisions (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, time REAL NOT NULL,
    decision TEXT NOT NULL, score REAL, feedback_time REAL);
CREATE INDEX decisions_by_time ON decisions (time);
CREATE TABLE prompts (seq INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE comments (seq INTEGER PRIMARY KEY, packed BLOB NOT NULL);
INSERT INTO decisions (id, time, decision, score) VALUES ('old', 7.0, '{"decision_id": "old"}', 0.5);
PRAGMA user_version = 1;
"""


VERSION_2 = f"{VERSION_1} CREATE TABLE tokens (seq INTEGER PRIMARY KEY, stated TEXT NOT NULL); PRAGMA user_version = 2;"


VERSION_3 = f"{VERSION_2} ALTER TABLE decisions ADD COLUMN owner TEXT; PRAGMA user_version = 3;"


@pytest.mark.parametrize("before", [VERSION_1, VERSION_2, VERSION_3])
def test_a_log_of_an_earlier_version_is_read_and_gone_on_with(tmp_path, before):
    with closing(sqlite3.connect(tmp_path / "j", isolation_level=None)) as file:
        file.executescript(before)
    for _ in range(2):  # and what it has become is opened again
        with closing(Store(tmp_path / "j")) as store:
            assert (store.decisions.one("old").score, store.decisions.one("old").tokens) == (0.5, None)
            assert store.decisions.one("old").ratings == {"score": 0.5}
    with closing(Store(tmp_path / "j")) as store:
        took(store, "old", completion=3)
        assert store.decisions.one("old").tokens == {"completion": 3}
        with pytest.raises(UnknownDecision):  # it is known to no key in particular
            store.decisions.one("old", "ann")


def test_an_unknown_decision_is_named(store):
    for act in (store.decisions.one, store.delete, lambda name: store.rate(Feedback(name, 1.0, None, 0.0))):
        with pytest.raises(UnknownDecision, match="no decision 'nobody'"):
            act("nobody")


def test_half_a_surrogate_pair_does_not_stop_the_log(store):
    add(store, "one", "odd \ud83d text")
    rate(store, "one", 1.0, "odd \ud83d comment")
    assert store.decisions.one("one").comment == "odd \ud83d comment"


@pytest.mark.parametrize("by", ["rows", "days"])
def test_retention_takes_the_oldest_first_and_leaves_no_text_of_them(store, by):
    for number in range(10):
        add(store, f"d{number}", f"secret-{number}-" * 40, moment=float(number))
    keep = Retention(4, 1e9) if by == "rows" else Retention(100, 4.5)
    commit(store, lambda: store.expire(keep, now=10.0))
    assert [kept.decision["decision_id"] for kept in store.decisions.everything()] == ["d6", "d7", "d8", "d9"]
    left = bytes_of(store)
    assert all((f"secret-{number}-".encode() in left) == (number >= 6) for number in range(10))


@examples(50)
@given(length=st.integers(0, 70_000) | st.integers(3580, 4100) | st.integers(7660, 8200))
def test_a_text_of_any_length_comes_back_and_lies_in_pages_of_its_own(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("packed") / "file"
    text = "<<>>" + "x" * length
    assert unpacked(packed(text)) == text
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        file.execute("CREATE TABLE prompts (seq INTEGER PRIMARY KEY, packed BLOB NOT NULL)")
        file.execute("INSERT INTO prompts VALUES (300, ?)", (packed(text),))
    raw = path.read_bytes()
    assert raw.count(b"<<>>") == 1
    assert 4 <= raw.index(b"<<>>") % PAGE_SIZE <= 10  # after the number of the next page and what is left of zeros


@pytest.mark.parametrize("seed", range(3))
def test_no_byte_of_a_deleted_text_or_comment_is_left(store, seed):
    """Also where pages were split, merged, or given other rows in between."""
    draw = random.Random(seed)
    living, dead = {}, []
    for number in range(150):
        mark = f"<{number:05d}>"
        text = (mark * 800)[: draw.choice([8, 60, 300, 900, 5000])] + mark
        step = draw.random()
        if step < 0.5 or not living:
            add(store, str(number), text)
            living[str(number)] = [mark]
        elif step < 0.7:
            name = draw.choice(list(living))
            rate(store, name, 0.5, text)
            dead += living[name][1:]
            living[name][1:] = [mark]
        else:
            name = draw.choice(list(living))
            commit(store, lambda name=name: store.delete(name))
            dead += living.pop(name)
        left = bytes_of(store)
        assert not [mark for mark in dead if mark.encode() in left]
        assert all(mark.encode() in left for marks in living.values() for mark in marks)
    assert len(dead) > 30


def test_while_another_program_reads_a_deletion_is_not_called_done(tmp_path, monkeypatch):
    monkeypatch.setattr("coe_server.journal.store.BUSY_SECONDS", 0.01)
    store = Store(tmp_path / "j")
    add(store, "one", "a secret")
    reader = sqlite3.connect(store.file.path)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM decisions").fetchall()
    with pytest.raises(JournalUnavailable, match="another program reads"):
        commit(store, lambda: store.delete("one"))
    reader.close()
    store.file.erase_traces()
    assert b"a secret" not in bytes_of(store)
    store.close()


def test_after_a_power_cut_all_that_was_committed_is_there(tmp_path):
    """The disk may hold more of the write-ahead log than was synced, cut anywhere; never less."""
    store = Store(tmp_path / "journal.sqlite3")
    store.file.sql.execute("PRAGMA wal_autocheckpoint = 0")
    assert store.file.sql.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: every commit waits for the disk
    log = tmp_path / "journal.sqlite3-wal"
    sizes = []
    for number in range(60):
        add(store, str(number))
        rate(store, str(number), number / 100)
        sizes.append(log.stat().st_size)
    main, log = store.file.path.read_bytes(), log.read_bytes()
    draw = random.Random(0)
    for attempt in range(20):
        cut = draw.randrange(len(log))
        survived = sum(size <= cut for size in sizes)
        other = tmp_path / f"after-{attempt}"
        other.mkdir()
        (other / "j").write_bytes(main)
        (other / "j-wal").write_bytes(log[:cut])
        again = Store(other / "j")
        found = {kept.decision["decision_id"]: kept.score for kept in again.decisions.everything()}
        again.close()
        assert {str(number): number / 100 for number in range(survived)}.items() <= found.items()
        assert len(found) <= survived + 1
    store.close()


def test_prompts_are_for_the_servers_own_user(store):
    assert stat.S_IMODE(store.file.path.stat().st_mode) == 0o600


def test_what_cannot_be_opened_is_a_sentence_with_the_way_out(tmp_path):
    (tmp_path / "j").write_text("this is no database, and long enough to be looked at as one" * 40)
    with pytest.raises(ConfigError, match=r"set another state_directory, or log\.decisions: false"):
        Store(tmp_path / "j")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="state_directory"):
        Store(tmp_path / "file" / "j")
    newer = Store(tmp_path / "newer")
    newer.file.sql.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ConfigError, match="version 99"):
        Store(tmp_path / "newer")


def test_a_decision_is_its_owners_and_to_others_like_one_that_never_was(store):
    commit(store, lambda: store.add(Entry(0.0, MadeUp("anns"), said("a secret"), "ann")))
    add(store, "without")
    acts = {
        "read": store.decisions.one,
        "rate": lambda name, owner: store.rate(Feedback(name, 1.0, "mine", 0.0), owner),
        "delete": store.delete,
    }
    for act in acts.values():
        for name, owner in (("anns", "bob"), ("without", "bob"), ("without", "ann"), ("never", "ann")):
            with pytest.raises(UnknownDecision, match=f"there is no decision '{name}' in the log"):
                act(name, owner)
    assert store.decisions.one("anns", "ann").score is None
    assert b"a secret" in bytes_of(store)
    for owner in ("ann", None):
        commit(store, lambda owner=owner: acts["rate"]("anns", owner))
    commit(store, lambda: store.delete("anns", "ann"))
    assert b"a secret" not in bytes_of(store)


def test_a_decision_that_changed_hands_is_still_its_first_owners(store):
    for owner in ("ann", "bob"):
        commit(store, lambda owner=owner: store.add(Entry(0.0, MadeUp("one"), None, owner)))
    assert store.decisions.one("one", "ann").decision["decision_id"] == "one"
    with pytest.raises(UnknownDecision):
        store.decisions.one("one", "bob")


def test_deleting_what_is_not_there_cuts_no_log_and_waits_for_no_disk(store):
    add(store, "one", "a secret")
    size = (store.file.path.parent / f"{store.file.path.name}-wal").stat().st_size
    assert size > 0
    with store.file.transaction():
        for number in range(100):
            with pytest.raises(UnknownDecision):
                store.delete(f"none-{number}", "ann")
    store.file.erase_traces()
    assert (store.file.path.parent / f"{store.file.path.name}-wal").stat().st_size == size


def test_what_a_killed_server_had_deleted_and_not_erased_is_erased_by_the_next(tmp_path):
    killed = Store(tmp_path / "j")
    add(killed, "one", "a secret")
    with killed.file.transaction():
        killed.delete("one")
    assert b"a secret" in bytes_of(killed)  # in the write-ahead log
    after = tmp_path / "after"
    after.mkdir()
    for file in tmp_path.glob("j*"):
        (after / file.name).write_bytes(file.read_bytes())
    killed.close()
    with closing(Store(after / "j")) as store:
        with store.file.transaction():
            pass
        store.file.erase_traces()
        assert b"a secret" not in bytes_of(store)
