"""A served router whose features come from an embeddings endpoint: with it, and when it fails."""

import json

import pytest

from coe_server.engines.simulated import SimulatedEngine
from coe_server.routing.embedders import Endpoint, EndpointEmbedder
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.config import read_config
from router_training.fit import fit
from tests.http.server import running_server
from tests.routing.stand_in_endpoint import endpoint
from tests.training.recorded import SIZES, write_run

FRENCH = [{"role": "user", "content": "bonjour merci maison chien"}]


@pytest.fixture(scope="module")
def there():
    with endpoint() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def server(there, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    features = {"kind": "endpoint", "model": "words", "base_url": there.base_url, "ngrams": False}
    fit(read_config(write_run(folder, features=features)), folder / "router", force=True, track=in_silence)
    fast = {"start_seconds": 0.01, "wake_seconds": 0.01, "sleep_seconds": 0.01, "ttft_seconds": 0.001}
    engines = {name: SimulatedEngine(name, weights_bytes=2**20, tokens_per_second=2000, **fast) for name in SIZES}
    embedder = EndpointEmbedder(Endpoint(there.base_url, "words", tries=2, first_pause_seconds=0.001))
    with running_server(engines, Router.load(folder / "router"), embedder=embedder) as running:
        yield running


def decision(server, **fields):
    _status, _headers, raw = server.ask("POST", "/v1/route", json.dumps({"messages": FRENCH, **fields}))
    return json.loads(raw)


def test_a_prompt_is_embedded_and_then_routed(server, there):
    before = len(there.texts)
    found = decision(server)
    assert (found["expert"], found["category"], found["reason"]) == ("fr", "french", "mapped")
    assert there.texts[before:] == [FRENCH[0]["content"]]
    status, headers, _body = server.chat(model="auto", messages=FRENCH)
    assert (status, headers["x-coe-expert"]) == (200, "fr")


def test_an_expert_asked_for_by_name_needs_no_embedding(server, there):
    before = len(there.texts)
    assert server.chat(model="gen")[0] == 200
    assert len(there.texts) == before


def test_a_failing_endpoint_fails_no_request(server, there, caplog):
    there.faults = [(500, b"")] * 2
    found = decision(server)
    assert (found["reason"], found["category"], found["gate"]["inside"]) == ("out_of_domain", "general", False)
    assert "routed without its embedding" in caplog.text
    assert decision(server)["reason"] == "mapped"
