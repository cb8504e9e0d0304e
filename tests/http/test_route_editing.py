"""The operator edits the routes file over HTTP: whole text, one example from a logged decision, undo."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from coe_server.build.drafts import drafted
from coe_server.engines.simulated import SimulatedEngine
from coe_server.http.auth import Guard
from coe_server.http.browsers import Hosts
from coe_server.http.routes.admin import Fresh
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.keys import Key, Keyring, hashed
from coe_server.routing.router import Router
from tests.http.server import running_server

NAMES = ("coder", "lawyer", "generalist")
TEXT = """# ours
routes:
  code: {expert: coder, examples: ["Why does this python loop never end?", "Sort a list in python"]}
  law:
    expert: lawyer  # the expensive one
    examples:
      - Can my landlord keep the deposit?
      - Is a verbal contract binding?
default: generalist
"""
CODE_KEY = "k" * 40


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "routes.yaml"
    path.write_text(TEXT)
    path.chmod(0o640)
    return path


@pytest.fixture
def journal(tmp_path):
    kept = Journal(tmp_path / "journal", Retention(100, 1e9), keeps_prompts=True)
    yield kept
    kept.stop()


def engine(name):
    seconds = dict.fromkeys(("start_seconds", "wake_seconds", "sleep_seconds", "ttft_seconds"), 0.0)
    return SimulatedEngine(name, weights_bytes=1, tokens_per_second=1e6, **seconds)


def serving_routes(file, journal=None, keyring=None):
    """A server whose router is made from the file, at its start and at each reload."""

    def router():
        return Router(drafted(file, NAMES, None, None))

    def rebuild(serving):
        guard = Guard(keyring or Keyring(), on_loopback=True, hosts=Hosts())
        return Fresh(replace(serving, router=router()), guard, False, ())

    engines = {name: engine(name) for name in NAMES}
    options = {"journal": journal, "keyring": keyring}
    return running_server(engines, router(), rebuild=rebuild, routes_file=file, **options)


def send(server, method, path, body=None, **headers):
    status, _, raw = server.ask(method, path, body and json.dumps(body), headers)
    return status, json.loads(raw) if raw else None


def test_a_logged_prompt_becomes_an_example_and_undo_takes_it_back(file, journal):
    with serving_routes(file, journal) as server:
        version = json.loads(server.ask("GET", "/admin/overview")[2])["router"]
        headers = server.chat(model="auto", messages=[{"role": "user", "content": "My tenant broke a window"}])[1]
        body = {"decision_id": headers["x-coe-decision-id"], "route": "law"}
        status, shown = send(server, "POST", "/admin/routes/examples", body)
        assert (status, shown["can_undo"], shown["prompts_kept"]) == (200, True, True)
        assert file.read_text() == TEXT.replace("binding?\n", 'binding?\n      - "My tenant broke a window"\n')
        assert file.stat().st_mode & 0o777 == 0o640
        assert json.loads(server.ask("GET", "/admin/overview")[2])["router"] != version
        answer = server.chat(model="auto", messages=[{"role": "user", "content": "My tenant broke a window"}])[1]
        assert answer["x-coe-expert"] == "lawyer"
        assert send(server, "POST", "/admin/routes/examples", body)[0] == 409  # it is one already
        status, shown = send(server, "POST", "/admin/routes/undo")
        assert (status, shown["can_undo"]) == (200, False)
        assert file.read_text() == TEXT
        assert json.loads(server.ask("GET", "/admin/overview")[2])["router"] == version
        assert send(server, "POST", "/admin/routes/undo")[0] == 409


def test_a_text_that_cannot_be_loaded_leaves_the_file_as_it_was(file):
    with serving_routes(file) as server:
        shown = send(server, "GET", "/admin/routes")[1]
        assert (shown["file"], shown["routes"], shown["text"]) == ("routes.yaml", ["code", "law", "default"], TEXT)
        for text, said in (
            (TEXT.replace("expert: lawyer", "expert: nosuch"), "no expert 'nosuch'"),
            ("routes: [", "routes.yaml"),
        ):
            status, refusal = send(server, "PUT", "/admin/routes", {"text": text, "version": shown["version"]})
            assert (status, said in refusal["error"]["message"]) == (409, True)
            assert file.read_text() == TEXT
        changed = TEXT.replace("# ours", "# theirs")
        assert send(server, "PUT", "/admin/routes", {"text": changed, "version": shown["version"]})[0] == 200
        assert file.read_text() == changed
        late = {"text": TEXT, "version": shown["version"]}
        assert send(server, "PUT", "/admin/routes", late)[0] == 409  # another change came first
        file.write_text(TEXT)  # by hand
        assert send(server, "POST", "/admin/routes/undo")[0] == 409
        assert file.read_text() == TEXT


def test_without_kept_prompts_or_routes_there_is_nothing_to_add(file, tmp_path):
    journal = Journal(tmp_path / "other", Retention(100, 1e9))
    with serving_routes(file, journal) as server:
        headers = server.chat(model="auto")[1]
        body = {"decision_id": headers["x-coe-decision-id"], "route": "law"}
        status, refusal = send(server, "POST", "/admin/routes/examples", body)
        assert (status, "is not kept" in refusal["error"]["message"]) == (404, True)
        assert send(server, "GET", "/admin/routes")[1]["prompts_kept"] is False
        assert send(server, "POST", "/admin/routes/examples", {"route": "law"})[0] == 400
    journal.stop()
    with running_server({"coder": engine("coder")}) as server:
        assert send(server, "GET", "/admin/routes") == (200, None)
        assert send(server, "POST", "/admin/routes/undo")[0] == 409


def test_the_routes_are_the_operators(file):
    keyring = Keyring(
        (Key(name="client", sha256=hashed(CODE_KEY)), Key(name="boss", sha256=hashed("b" * 40), admin=True))
    )
    with serving_routes(file, keyring=keyring) as server:
        for method, path in (("GET", "/admin/routes"), ("PUT", "/admin/routes"), ("POST", "/admin/routes/undo")):
            assert server.ask(method, path, "{}", {"authorization": f"Bearer {CODE_KEY}"})[0] == 403
        assert server.ask("GET", "/admin/routes", headers={"authorization": f"Bearer {'b' * 40}"})[0] == 200
