"""Files for their owner alone."""

import os
import resource
import stat
from contextlib import contextmanager

import pytest

from coe_server.cache.costs import read_costs, write_costs
from coe_server.commands.export import export_journal
from coe_server.engines.log_file import fresh_log, open_log, previous_log
from coe_server.errors import CoeError, ConfigError
from coe_server.journal.entries import Entry
from coe_server.journal.store import Store
from coe_server.keys import read_keys, write_keys
from coe_server.system.files import create_private, private_folder, replacing
from coe_server.system.process import LOCK_FILE, state_lock
from tests.journal.decided import MadeUp, said


@contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path):
    return oct(stat.S_IMODE(path.lstat().st_mode))


@pytest.fixture
def victim(tmp_path):
    file = tmp_path / "elsewhere" / "victim"
    file.parent.mkdir()
    file.write_text("precious")
    yield file
    assert file.read_text() == "precious"


def write_journal(folder):
    store = Store(folder / "journal.sqlite3")
    with store.file.transaction():
        store.add(Entry(0.0, MadeUp("one", {"probabilities": {}}), said("a secret")))
    store.close()


def lock(folder):
    with state_lock(folder):
        pass


def write_export(folder):
    write_journal(folder.parent / "state")
    export_journal(folder.parent / "state" / "journal.sqlite3", folder)


WRITERS = {
    "keys": lambda folder: write_keys(folder / "keys.json", ()),
    "costs": lambda folder: write_costs(folder / "costs.json", {}),
    "journal": write_journal,
    "export": write_export,
    "lock": lock,
    "log": lambda folder: fresh_log(folder, "a"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_what_is_made_is_its_owners_alone_whatever_the_umask(tmp_path, write, mask):
    folder = tmp_path / "new" / "state"
    with umask(mask):
        write(folder)
    made = list(folder.iterdir())
    assert made
    assert {mode(file) for file in made} == {"0o600"}
    assert {mode(folder), mode(folder.parent)} == {"0o700"}


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    private_folder(tmp_path / "shared" / "own")
    assert (mode(tmp_path / "shared"), mode(tmp_path / "shared" / "own")) == ("0o755", "0o700")


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_a_file_that_others_could_read_is_its_owners_alone_once_replaced(tmp_path, mask):
    for name in ("keys.json", "costs.json"):
        (tmp_path / name).write_text("{}")
        (tmp_path / name).chmod(0o666)
    with umask(mask):
        write_keys(tmp_path / "keys.json", ())
        write_costs(tmp_path / "costs.json", {"a": {"start": 1.0}})
    assert {mode(file) for file in tmp_path.iterdir()} == {"0o600"}
    assert read_costs(tmp_path / "costs.json") == {"a": {"start": 1.0}}


def test_keys_are_not_written_through_a_link(tmp_path, victim):
    (tmp_path / "keys.json").symlink_to(victim)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        write_keys(tmp_path / "keys.json", ())
    (tmp_path / "keys.json").unlink()
    (tmp_path / f".keys.json.{os.getpid()}").symlink_to(victim)
    write_keys(tmp_path / "keys.json", ())
    assert not (tmp_path / "keys.json").is_symlink()


def test_costs_and_exported_prompts_take_the_place_of_a_link(tmp_path, victim):
    for name in ("costs.json", "costs.new"):
        (tmp_path / name).symlink_to(victim)
    write_costs(tmp_path / "costs.json", {})
    assert not (tmp_path / "costs.json").is_symlink()
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("prompts.jsonl", "feedback.jsonl", "outcomes.jsonl"):
        (folder / name).symlink_to(victim)
    write_export(folder)
    assert [file.is_symlink() for file in folder.iterdir()] == [False] * 3
    assert "a secret" in (folder / "prompts.jsonl").read_text()


def test_a_link_in_the_place_of_the_decision_log_stops_the_start(tmp_path, victim):
    (tmp_path / "journal.sqlite3").symlink_to(victim)
    with pytest.raises(ConfigError, match="cannot open the decision log"):
        Store(tmp_path / "journal.sqlite3")


def test_a_link_in_the_place_of_the_lock_stops_the_start(tmp_path, victim):
    (tmp_path / LOCK_FILE).symlink_to(victim)
    with pytest.raises(CoeError, match="symbolic link"), state_lock(tmp_path):
        pass


def test_a_link_in_the_place_of_an_engines_log_is_replaced(tmp_path, victim):
    (tmp_path / "a.log").symlink_to(victim)
    log = fresh_log(tmp_path, "a")
    assert not log.is_symlink()
    log.unlink()
    log.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        open_log(log)


def test_a_log_that_others_could_read_is_its_owners_alone_from_the_next_run_on(tmp_path):
    (tmp_path / "a.log").write_text("a prompt")
    (tmp_path / "a.log").chmod(0o644)
    log = fresh_log(tmp_path, "a")
    assert (mode(log), mode(previous_log(log))) == ("0o600", "0o600")


def test_what_fails_half_way_leaves_the_file_as_it_was_and_no_draft(tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(UnicodeEncodeError), replacing(tmp_path / "file") as out:
        out.write("half \ud800")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "before")]


@pytest.fixture
def full_disk():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def written_whole(file):
    with replacing(file) as out:
        out.write("longer than that")


@pytest.mark.parametrize("write", [written_whole, lambda file: create_private(file, "longer than that")])
def test_a_file_that_the_disk_has_no_room_for_is_named_and_leaves_nothing(tmp_path, full_disk, write):
    file = tmp_path / "some.yaml"
    with pytest.raises(OSError, match="too large") as caught:
        write(file)
    assert caught.value.filename == str(file)
    assert list(tmp_path.iterdir()) == []


def test_a_key_file_that_every_user_could_write_is_refused(tmp_path):
    write_keys(tmp_path / "keys.json", ())
    (tmp_path / "keys.json").chmod(0o646)
    with pytest.raises(ConfigError, match="can be written by every user of this machine; chmod 600"):
        read_keys(tmp_path / "keys.json")
    (tmp_path / "keys.json").chmod(0o644)
    assert read_keys(tmp_path / "keys.json") == ()
