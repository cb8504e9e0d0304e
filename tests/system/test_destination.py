"""Commands look at the place of their result before they work for it, and end with one sentence."""

import json

import pytest
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.errors import ConfigError
from coe_server.system.files import require_writable_file, require_writable_folder
from tests.test_cli import config

NOWHERE = "/proc"  # not even root can make a file here


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def test_looking_leaves_a_place_as_it_is(tmp_path):
    (tmp_path / "there").write_text("kept")
    require_writable_file("--json", tmp_path / "there")
    require_writable_file("--json", tmp_path / "new")
    require_writable_folder("--out", tmp_path)
    require_writable_folder("--out", tmp_path / "a/b/c")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("there", "kept")]


@pytest.mark.parametrize(
    ("option", "place", "sentence"),
    [
        ("--json", f"{NOWHERE}/x", f"--json: {NOWHERE}/x cannot be written"),
        ("--timeline", "gone/x.svg", "gone/x.svg cannot be written: there is no folder"),
        ("--json", ".", "is a folder; give a file"),
    ],
)
def test_a_simulation_is_not_played_for_a_file_that_cannot_be_written(tmp_path, option, place, sentence):
    done = run("simulate", "--profile", "zipf", "--requests", "1000000000", option, tmp_path / place)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "sentence"),
    [("taken", "taken is a file; give a folder"), (f"{NOWHERE}/q", f"--out: {NOWHERE}/q cannot be written")],
)
def test_an_export_to_where_no_folder_can_be_is_refused(tmp_path, place, sentence):
    (tmp_path / "taken").touch()
    done = run("journal", "export", config(tmp_path), "--out", tmp_path / place)
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out: .*file is a file; give a folder"):
        require_writable_folder("--out", tmp_path / "file/a/b")


def test_keys_that_cannot_be_kept_are_not_made(tmp_path):
    done = run("keys", "add", config(tmp_path, keys={"file": f"{NOWHERE}/keys.json"}), "a")
    assert done.exit_code == 2
    assert f"keys.file: {NOWHERE}/keys.json cannot be written" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("limit", "status"), [("1000000", 0), ("1000001", 2), ("99999999999999999999", 2)])
def test_a_key_takes_so_many_requests_a_minute_as_its_file_may_say(tmp_path, limit, status):
    done = run("keys", "add", config(tmp_path, keys={"file": "keys.json"}), "a", "--requests-per-minute", limit)
    assert done.exit_code == status
    assert (tmp_path / "keys.json").exists() == (status == 0)
    if status == 0:
        assert json.loads((tmp_path / "keys.json").read_text())["keys"][0]["requests_per_minute"] == int(limit)


@pytest.mark.parametrize("key", ["b\nd", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_not_sent(tmp_path, key):
    for words in (("bench", "http://127.0.0.1:1/v1", "--key"), ("experts", config(tmp_path), "--admin-key")):
        done = run(*words, key)
        assert done.exit_code == 2
        assert f"{words[-1]}: the key has other characters than printable ASCII" in done.stderr
        assert key not in done.stderr
