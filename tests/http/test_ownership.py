"""What belongs to one key: decisions, responses, and the experts that it may know of."""

import asyncio
import json
import re
import threading

import pytest

from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.keys import Key, Keyring, hashed
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.patience import PATIENCE_SECONDS
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

RING = Keyring(
    (
        Key(name="ann", sha256=hashed("coe-ann")),
        Key(name="bob", sha256=hashed("coe-bob")),
        Key(
            name="few",
            sha256=hashed("coe-few"),
            experts=frozenset({"linguist"}),
            objectives=frozenset({"cheap"}),
        ),
        Key(name="boss", sha256=hashed("coe-boss"), admin=True),
    )
)
WITHHELD = re.compile(r"coder|big|auto:quality|there are [^\"]*quality|router has")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    journal = Journal(tmp_path_factory.mktemp("state") / "j", Retention(1000, 1e9), keeps_prompts=True)
    folder = tmp_path_factory.mktemp("artifact") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    engines = {name: simulated(name) for name in SIZES}
    aliases = {"gpt": "big", "mine": "linguist"}
    with running_server(
        engines, router=Router.load(folder), journal=journal, keyring=RING, on_loopback=False, aliases=aliases
    ) as running:
        yield running
    journal.stop()


def ask(server, key, method, path, body=None):
    body = None if body is None else json.dumps(body)
    return server.ask(method, path, body, {"authorization": f"Bearer coe-{key}"})


def decided(server, key, **fields):
    body = {"model": "auto", "messages": [{"role": "user", "content": TEXTS["french"]}], **fields}
    status, headers, raw = ask(server, key, "POST", CHAT, body)
    assert status == 200, raw
    return headers["x-coe-decision-id"]


def on(server, key, decision_id):
    """What a key gets for a decision's id, in each way of asking."""
    return [
        ask(server, key, "GET", f"/v1/decisions/{decision_id}"),
        ask(server, key, "POST", "/v1/feedback", {"decision_id": decision_id, "score": 0.0}),
        ask(server, key, "DELETE", f"/v1/decisions/{decision_id}"),
    ]


def test_a_decision_is_known_to_the_key_that_asked_and_to_an_admin(server):
    mine = decided(server, "ann")
    unknown = "0" * len(mine)
    for key in ("bob", "few"):
        refused, absent = on(server, key, mine), on(server, key, unknown)
        assert [answer[0] for answer in refused] == [404] * 3
        told = [answer[2].decode().replace(mine, unknown) for answer in refused]
        assert told == [answer[2].decode() for answer in absent]
    kept = json.loads(ask(server, "ann", "GET", f"/v1/decisions/{mine}")[2])
    assert kept["feedback"] is None
    assert [answer[0] for answer in on(server, "ann", mine)] == [200, 200, 204]
    assert [answer[0] for answer in on(server, "boss", decided(server, "ann"))] == [200, 200, 204]
    assert ask(server, "ann", "GET", f"/v1/decisions/{decided(server, 'boss')}")[0] == 404


def test_a_streamed_decision_is_its_keys_too(server):
    mine = decided(server, "ann", stream=True)
    assert ask(server, "bob", "DELETE", f"/v1/decisions/{mine}")[0] == 404
    assert ask(server, "ann", "DELETE", f"/v1/decisions/{mine}")[0] == 204


def test_ids_are_random_and_of_no_use_to_guess(server):
    ids = [decided(server, "ann") for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)


@pytest.mark.parametrize("name", ["linguist", "auto"])
def test_a_response_of_another_key_is_unknown_to_every_expert(server, name):
    raw = ask(server, "ann", "POST", "/v1/responses", {"model": "linguist", "input": "hello"})[2]
    found = json.loads(raw)["id"]
    for key in ("bob", "boss"):
        body = {"model": name, "input": "and?", "previous_response_id": found}
        status, _, refused = ask(server, key, "POST", "/v1/responses", body)
        assert (status, json.loads(refused)["error"]["param"]) == (400, "previous_response_id")
        assert "ann" not in refused.decode().replace("another", "")
    body = {"model": "linguist", "input": "and?", "previous_response_id": found}
    assert ask(server, "ann", "POST", "/v1/responses", body)[0] == 200


ASKED = {
    "models": ("GET", "/v1/models", None),
    "no such model": ("GET", "/v1/models/nope", None),
    "the document": ("GET", "/openapi.json", None),
    "a dry run": ("POST", "/v1/route", {"model": "auto"}),
    "a dry run by name": ("POST", "/v1/route", {"model": "linguist"}),
    "an unknown model": ("POST", CHAT, {"model": "nope"}),
    "an unknown objective": ("POST", CHAT, {"model": "auto", "coe": {"objective": "nope"}}),
    "an unknown auto": ("POST", CHAT, {"model": "auto:nope"}),
    "an unknown alias": ("POST", CHAT, {"model": "gpt"}),
    "an unknown expert allowed": ("POST", CHAT, {"model": "auto", "coe": {"allow": ["nope"]}}),
    "no capable expert": ("POST", CHAT, {"model": "auto", "coe": {"max_active_params_b": 1e-7}}),
    "no expert's name": ("POST", "/v1/embeddings", {"model": "auto", "input": "x"}),
}


@pytest.mark.parametrize(("method", "path", "fields"), ASKED.values(), ids=ASKED)
def test_a_limited_key_is_told_of_its_own_experts_and_objectives_alone(server, method, path, fields):
    body = fields and {"messages": [{"role": "user", "content": TEXTS["maths"]}], **fields}
    status, headers, raw = ask(server, "few", method, path, body)
    told = raw.decode() + json.dumps(headers)
    if fields != {"model": "gpt"}:
        assert "linguist" in told or "cheap" in told, told
    assert WITHHELD.findall(told) == [], (status, told)


def test_a_limited_keys_decision_read_again_names_its_own_experts_alone(server):
    raw = ask(server, "few", "GET", f"/v1/decisions/{decided(server, 'few')}")[2]
    assert {one["expert"] for one in json.loads(raw)["ranking"]} == {"linguist"}
    raw = ask(server, "ann", "GET", f"/v1/decisions/{decided(server, 'ann')}")[2]
    assert {one["expert"] for one in json.loads(raw)["ranking"]} == set(SIZES)


def test_each_caller_reads_its_own_document(server):
    def enum(key):
        found = json.loads(ask(server, key, "GET", "/openapi.json")[2])
        schema = found["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return schema["properties"]["model"]["enum"]

    assert enum("few") == ["auto", "auto:cheap", "linguist", "mine"]
    assert {*SIZES, "gpt", "mine"} <= set(enum("ann"))
    assert enum("few") == ["auto", "auto:cheap", "linguist", "mine"]


def test_before_there_is_a_router_a_limited_key_is_told_of_its_own_experts():
    with running_server({name: simulated(name) for name in SIZES}, keyring=RING, on_loopback=False) as bare:
        body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
        status, _, raw = ask(bare, "few", "POST", CHAT, body)
    assert status == 404
    assert "linguist" in raw.decode()
    assert WITHHELD.findall(raw.decode()) == []


class Held(Journal):
    """A decision log that deletes nothing before the test says so, and counts what it is asked to delete."""

    def __init__(self, path):
        super().__init__(path, Retention(1000, 1e9))
        self.begun, self.enough, self.open = 0, threading.Event(), threading.Event()

    async def delete(self, decision_id, owner=None):
        self.begun += 1
        if self.begun == 16:
            self.enough.set()
        await asyncio.to_thread(self.open.wait, PATIENCE_SECONDS)
        await super().delete(decision_id, owner)


def test_one_key_cannot_fill_the_decision_logs_queue(tmp_path):
    journal = Held(tmp_path / "j")
    with running_server({"a": simulated("a")}, keyring=RING, on_loopback=False, journal=journal) as server:
        flood = [
            threading.Thread(target=ask, args=(server, "bob", "DELETE", f"/v1/decisions/x{number}"))
            for number in range(24)
        ]
        for one in flood:
            one.start()
        try:
            assert journal.enough.wait(PATIENCE_SECONDS)
            assert journal.begun == 16
            mine = decided(server, "ann", model="a")
            assert ask(server, "ann", "POST", "/v1/feedback", {"decision_id": mine, "score": 1.0})[0] == 200
        finally:
            journal.open.set()
            for one in flood:
                one.join(PATIENCE_SECONDS)
    journal.stop()
    assert journal.begun == 24
