"""Keys: kept as hashes, made and removed by commands, wrong files refused with a sentence."""

import json
import os
import stat

import pytest

from coe_server.build.guard import build_guard
from coe_server.commands.terminal import bearer
from coe_server.config.schema import load_config
from coe_server.errors import ConfigError
from coe_server.keys import LARGEST_FILE_BYTES, Key, Keyring, hashed, new_key, read_keys, write_keys
from tests.test_cli import coe, config


def test_what_is_written_is_read_back_and_only_its_owner_may(tmp_path):
    keys = (
        Key(name="a", sha256=hashed("one"), requests_per_minute=3, experts=frozenset({"x", "y"})),
        Key(name="b", sha256=hashed("two"), admin=True, concurrency=2, objectives=frozenset()),
    )
    write_keys(tmp_path / "new/keys.json", keys)
    assert read_keys(tmp_path / "new/keys.json") == keys
    assert stat.S_IMODE((tmp_path / "new/keys.json").stat().st_mode) == 0o600
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["keys.json"]


def test_a_file_of_any_size_and_depth_is_told_in_one_sentence(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text('{"keys": ' + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"keys.json is not JSON: ") as caught:
        read_keys(path)
    assert "\n" not in str(caught.value)
    os.truncate(path, LARGEST_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="has more than 8,388,608 bytes"):
        read_keys(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_keys(path)


def test_a_file_with_a_byte_order_mark_and_line_ends_of_windows_is_read(tmp_path):
    text = json.dumps({"keys": [{"name": "a", "sha256": hashed("one")}]}, indent=1)
    (tmp_path / "keys.json").write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert [key.name for key in read_keys(tmp_path / "keys.json")] == ["a"]


def test_a_key_is_found_by_itself_alone():
    first, second = new_key(), new_key()
    assert first != second
    ring = Keyring((Key(name="a", sha256=hashed(first)), Key(name="b", sha256=hashed(second))))
    assert ring.find(first).name == "a"
    assert ring.find(second).name == "b"
    for wrong in ("", first[:-1], first + " ", hashed(first), "\udcff"):
        assert ring.find(wrong) is None


def test_what_came_went_or_changed_is_named():
    a, b, c = (Key(name=name, sha256=hashed(name)) for name in "abc")
    again, limited = Key(name="a", sha256=hashed("other")), Key(name="b", sha256=hashed("b"), requests_per_minute=1)
    assert Keyring((a, c)).since(Keyring((a, b))) == {"added": ["c"], "removed": ["b"], "changed": []}
    assert Keyring((again, limited)).since(Keyring((a, b))) == {"added": [], "removed": [], "changed": ["a", "b"]}
    assert Keyring((b, a)).since(Keyring((a, b))) == {"added": [], "removed": [], "changed": []}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "keys.json must be a mapping with the list `keys`; `coe keys add` creates such a file"),
        ('{"keys": [{"name": "a"}]}', "keys.a.sha256: is missing"),
        (json.dumps({"keys": [{"name": "a", "sha256": "secret"}]}), "keys.a.sha256: is not the SHA-256 of a key"),
        (json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "rpm": 1}]}), "keys.a.rpm: there is no such key"),
        (
            json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "expert": ["a"]}]}),
            "keys.a.expert: there is no such key; did you mean 'experts'?",
        ),
        (json.dumps({"keys": [{"name": "a", "sha256": "0" * 64}] * 2}), "the key 'a' occurs twice"),
    ],
)
def test_a_wrong_file_is_refused_with_a_sentence(tmp_path, content, sentence):
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(ConfigError, match=r"keys\.file") as caught:
        read_keys(tmp_path / "keys.json")
    assert sentence in str(caught.value)


def test_commands_make_show_and_remove_keys(tmp_path):
    path = config(tmp_path, keys={"file": "keys.json"})
    made = coe("keys", "add", path, "alice", "--requests-per-minute", "60", "--expert", "a", "--objective", "cheap")
    assert made.returncode == 0
    key = made.stdout.strip()
    (entry,) = read_keys(tmp_path / "keys.json")
    assert (entry.sha256, entry.requests_per_minute, entry.experts) == (hashed(key), 60, {"a"})
    assert key not in (tmp_path / "keys.json").read_text()
    again = coe("keys", "add", path, "alice")
    assert again.returncode == 2
    assert "key 'alice' already exists" in again.stderr
    long = "x" * 64
    assert coe("keys", "add", path, long).returncode == 0
    shown = coe("keys", "list", path).stdout
    assert coe("keys", "remove", path, long).returncode == 0
    assert "alice" in shown
    assert long in shown  # nothing is cut, whatever the width
    assert entry.created is not None
    assert entry.created.isoformat() in shown
    assert key not in shown
    assert coe("keys", "remove", path, "alice").returncode == 0
    assert read_keys(tmp_path / "keys.json") == ()
    assert "there is no key 'alice'" in coe("keys", "remove", path, "alice").stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(("bob", "--expert", "gone"), "there is no expert 'gone'"), (("b b",), "NAME: 'b b' is not a name: up to 64")],
)
def test_a_key_that_makes_no_sense_is_not_made(tmp_path, words, sentence):
    made = coe("keys", "add", config(tmp_path, keys={"file": "keys.json"}), *words)
    assert made.returncode == 2
    assert sentence in made.stderr
    assert not (tmp_path / "keys.json").exists()


def guard_of(folder, **settings):
    return build_guard(load_config(config(folder, **settings)))


def test_a_server_that_others_reach_wants_keys_or_a_word(tmp_path, caplog):
    beyond = {"host": "0.0.0.0"}
    with pytest.raises(ConfigError, match="can be reached from other machines and there are no keys"):
        guard_of(tmp_path, http=beyond)
    guard = guard_of(tmp_path, http=beyond, keys={"open": True})
    assert (guard.keyring.keys, guard.on_loopback) == ((), False)
    assert "every client that reaches 0.0.0.0 may use every expert" in caplog.text


@pytest.mark.parametrize("host", ["127.evil.example", "127.0.0.1.evil.example", "localhost.example", "10.0.0.1", "::"])
def test_a_name_that_looks_like_loopback_is_reached_by_others(tmp_path, host):
    with pytest.raises(ConfigError, match="can be reached from other machines and there are no keys"):
        guard_of(tmp_path, http={"host": host})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "127.1", "::1"])
def test_a_loopback_address_needs_no_keys(tmp_path, host):
    assert guard_of(tmp_path, http={"host": host}).on_loopback


def test_the_names_of_a_server_are_its_address_and_those_that_are_allowed(tmp_path):
    settings = {"host": "Coe.internal", "allowed_hosts": ["AI.example.com", "[FE80::1]"]}
    hosts = guard_of(tmp_path, http=settings, keys={"open": True}).hosts
    assert hosts.allowed == {"coe.internal", "ai.example.com", "fe80::1"}
    assert hosts.any_for_clients
    assert not guard_of(tmp_path).hosts.any_for_clients


def test_keys_come_from_the_environment_too(tmp_path, monkeypatch):
    monkeypatch.setenv("OURS", "a-long-word")
    monkeypatch.setenv("BOSS", "a-longer-word")
    guard = guard_of(tmp_path, keys={"api_key_env": "OURS", "admin_key_env": "BOSS"})
    assert guard.keyring.find("a-long-word").admin is False
    assert guard.keyring.find("a-longer-word").admin is True
    monkeypatch.delenv("OURS")
    with pytest.raises(ConfigError, match=r"keys\.api_key_env: the environment variable 'OURS' is not set"):
        guard_of(tmp_path, keys={"api_key_env": "OURS"})


def test_a_key_to_scrape_with_is_made_and_taken_from_the_environment(tmp_path, monkeypatch):
    path = config(tmp_path, keys={"file": "keys.json"})
    made = coe("keys", "add", path, "prometheus", "--scrape")
    assert made.returncode == 0
    (entry,) = read_keys(tmp_path / "keys.json")
    assert (entry.scrape, entry.admin) == (True, False)
    assert "/metrics" in coe("keys", "list", path).stdout
    assert "--scrape: such a key allows only /metrics" in coe("keys", "add", path, "x", "--scrape", "--admin").stderr
    monkeypatch.setenv("SCRAPER", "a-word")
    key = guard_of(tmp_path, keys={"scrape_key_env": "SCRAPER"}).keyring.find("a-word")
    assert (key.scrape, key.admin) == (True, False)


def test_a_key_for_fronts_is_made_for_a_node_alone(tmp_path):
    path = config(tmp_path, keys={"file": "keys.json"}, role="node")
    made = coe("keys", "add", path, "front", "--node")
    assert made.returncode == 0, made.stderr
    (entry,) = read_keys(tmp_path / "keys.json")
    assert (entry.node, entry.admin, entry.scrape) == (True, False, False)
    assert entry.priority  # the front has looked at its callers' rights
    assert "/v1, /node" in coe("keys", "list", path).stdout
    assert "give no other option" in coe("keys", "add", path, "x", "--node", "--admin").stderr
    server = config(tmp_path, keys={"file": "keys.json"})
    assert "no role: node" in coe("keys", "add", server, "x", "--node").stderr


def test_a_key_is_not_admins_and_prometheus_at_once(tmp_path):
    both = {"name": "a", "sha256": hashed("one"), "admin": True, "scrape": True}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [both]}))
    with pytest.raises(ConfigError, match="is both admin and scrape"):
        read_keys(tmp_path / "keys.json")


def test_a_fronts_key_may_name_an_expert_that_only_a_node_has(tmp_path):
    path = tmp_path / "front.yaml"
    nodes = [{"name": "left", "address": "http://127.0.0.1:8081"}]
    path.write_text(json.dumps({"experts": [], "nodes": nodes, "keys": {"file": "keys.json"}}))
    assert coe("keys", "add", path, "alice", "--expert", "coder").returncode == 0
    (entry,) = read_keys(tmp_path / "keys.json")
    assert entry.experts == {"coder"}


def test_adding_and_removing_a_key_say_that_a_running_server_needs_a_reload(tmp_path):
    path = config(tmp_path, keys={"file": "keys.json"})
    assert "a running server takes it after a reload" in coe("keys", "add", path, "alice").stderr
    assert "a running server refuses it after a reload" in coe("keys", "remove", path, "alice").stderr


def test_a_key_of_the_file_has_no_name_of_one_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OURS", "a-long-word")
    write_keys(tmp_path / "keys.json", [Key(name="api_key_env", sha256=hashed("one"))])
    with pytest.raises(ConfigError, match=r"keys\.api_key_env: keys.file has a key with the name 'api_key_env'"):
        guard_of(tmp_path, keys={"file": "keys.json", "api_key_env": "OURS"})


def test_a_key_for_an_expert_that_is_not_there_stops_the_start(tmp_path):
    write_keys(tmp_path / "keys.json", [Key(name="a", sha256=hashed("one"), experts=frozenset({"gone"}))])
    with pytest.raises(ConfigError, match="key 'a' may use expert 'gone'; the experts are a"):
        guard_of(tmp_path, keys={"file": "keys.json"})


def test_blanks_around_a_key_are_left_out_wherever_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("OURS", "a-long-word\n")
    assert guard_of(tmp_path, keys={"api_key_env": "OURS"}).keyring.find("a-long-word").name == "api_key_env"
    digest = f" {hashed('one').upper()}\n"
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{"name": "a", "sha256": digest}]}))
    assert guard_of(tmp_path, keys={"file": "keys.json"}).keyring.find("one").name == "a"


@pytest.mark.parametrize("name", ["api_key_env", "admin_key_env"])
def test_a_key_that_no_header_can_carry_stops_the_start_unseen(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OURS", "s3cret\nword")
    with pytest.raises(ConfigError, match=rf"^keys\.{name}: the environment variable 'OURS' has a line break") as told:
        guard_of(tmp_path, keys={name: "OURS"})
    assert "s3cret" not in str(told.value)


def test_a_key_that_clients_send_in_different_encodings_stops_the_start_unseen(tmp_path, monkeypatch):
    monkeypatch.setenv("OURS", "s3cret-\u00fc")
    with pytest.raises(ConfigError, match=r"^keys\.api_key_env: .* has a character beyond ASCII") as told:
        guard_of(tmp_path, keys={"api_key_env": "OURS"})
    assert "s3cret" not in str(told.value)


def test_a_key_in_the_place_of_its_hash_is_not_shown(tmp_path):
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{"name": "a", "sha256": "s3cret"}]}))
    with pytest.raises(ConfigError, match=r"sha256: is not the SHA-256 of a key") as told:
        guard_of(tmp_path, keys={"file": "keys.json"})
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("key", ["k", " k\n", "\tk\r\n"])
def test_blanks_around_a_key_of_the_command_line_are_left_out(key):
    assert bearer("--key", key) == {"authorization": "Bearer k"}
    assert bearer("--key", " \n") == bearer("--key", None) == {}


def test_a_key_of_the_command_line_that_no_header_can_carry_is_refused_unseen():
    with pytest.raises(ConfigError, match=r"^--key: the key has other characters than printable ASCII") as told:
        bearer("--key", "s3cret\nword")
    assert "s3cret" not in str(told.value)


def test_a_key_is_made_with_its_width_its_weight_and_its_permission(tmp_path):
    path = config(tmp_path, keys={"file": "keys.json"})
    made = coe("keys", "add", path, "alice", "--max-fan-out", "4", "--priority", "--weight", "2.5")
    assert made.returncode == 0, made.stderr
    (key,) = read_keys(tmp_path / "keys.json")
    assert (key.max_fan_out, key.priority, key.weight) == (4, True, 2.5)
    (plain,) = (Key(name="b", sha256=hashed("b")),)
    assert (plain.max_fan_out, plain.priority, plain.weight) == (None, False, 1.0)
    assert coe("keys", "add", path, "bob", "--weight", "0").returncode == 2
