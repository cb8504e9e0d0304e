"""Aliases: further names for models, such as those that are fixed in a client."""

import json

import pytest

from coe_server.keys import Key, Keyring, hashed
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

ALIASES = {"openai/gpt-4o": "auto", "gpt-4o-mini": "auto:cheap", "qwen:7b": "coder"}
RING = Keyring(
    (
        Key(name="all", sha256=hashed("coe-all")),
        Key(name="few", sha256=hashed("coe-few"), experts=frozenset({"linguist"}), objectives=frozenset({"cheap"})),
    )
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    engines = {name: simulated(name) for name in SIZES}
    with running_server(
        engines, router=Router.load(folder), keyring=RING, on_loopback=False, aliases=ALIASES
    ) as running:
        yield running


def ask(server, model, key="coe-all", path="/v1/chat/completions"):
    body = {"model": model, "messages": [{"role": "user", "content": TEXTS["french"]}]}
    status, headers, raw = server.ask("POST", path, json.dumps(body), {"authorization": f"Bearer {key}"})
    return status, headers, json.loads(raw)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_asked_like_what_it_stands_for(server, alias):
    asked = [ask(server, name, path="/v1/route")[2] for name in (alias, ALIASES[alias])]
    for decision in asked:
        for of_its_moment in ("decision_id", "routing_ms"):
            del decision[of_its_moment]
    assert asked[0] == asked[1]
    status, headers, _ = ask(server, alias)
    assert (status, headers["x-coe-expert"]) == (200, asked[0]["expert"])


def test_an_alias_reaches_what_its_goal_reaches_and_no_more(server):
    status, _, refusal = ask(server, "qwen:7b", key="coe-few")
    assert (status, refusal["error"]["code"]) == (403, "model_not_found")
    assert "no access to 'qwen:7b'" in refusal["error"]["message"]
    assert ALIASES["qwen:7b"] not in refusal["error"]["message"]  # what it stands for is not told
    assert ask(server, "gpt-4o-mini", key="coe-few")[1]["x-coe-expert"] == "linguist"


@pytest.mark.parametrize("key", ["coe-all", "coe-few"])
def test_an_unknown_model_is_answered_with_every_name_that_the_list_of_models_has(server, key):
    models = json.loads(server.ask("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})[2])["data"]
    known = f"unknown model 'gpt-4'; known: {', '.join(model['id'] for model in models)}"
    assert ask(server, "gpt-4", key)[2]["error"]["message"] == known


@pytest.mark.parametrize(("key", "listed"), [("coe-all", set(ALIASES)), ("coe-few", {"openai/gpt-4o", "gpt-4o-mini"})])
def test_the_list_of_models_has_the_aliases_of_what_is_in_it(server, key, listed):
    bearer = {"authorization": f"Bearer {key}"}
    models = json.loads(server.ask("GET", "/v1/models", headers=bearer)[2])["data"]
    assert {model["id"] for model in models if model["owned_by"] == "alias"} == listed
    assert server.ask("GET", "/v1/models/openai/gpt-4o", headers=bearer)[0] == 200
    assert server.ask("GET", "/v1/models/qwen:7b", headers=bearer)[0] == (200 if "qwen:7b" in listed else 404)
