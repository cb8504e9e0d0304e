"""How many answers one request asks for: read from any body, capped for the server and for a key."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.policy import Limits
from coe_server.errors import RequestError
from coe_server.http.apis import APIS, MOST_INPUTS
from coe_server.http.bodies.body import LARGE_BYTES, parse_request
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import simulated

BY_PATH = {api.path: api for api in APIS}
MESSAGES = {"messages": [{"role": "user", "content": "hello"}]}


def fan_out(path, **fields):
    return parse_request(json.dumps(fields).encode(), BY_PATH[path]).fan_out


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": None}, 1),
        ({"n": "4000"}, 4000),
        ({"n": " 4_000 "}, 4000),
        ({"n": 4000.0}, 4000),
        ({"n": 3.5}, 4),
        ({"n": True}, 1),
        ({"n": 0}, 1),
        ({"n": -5}, 1),
        ({"n": "many"}, 1),
        ({"n": [9]}, 1),
        ({"n": "nan"}, 1),
        ({"n": 2, "best_of": 7}, 7),
        ({"n_cmpl": 6}, 6),
    ],
)
def test_n_and_its_like_are_read_as_the_most_lenient_engine_reads_them(fields, answers):
    assert fan_out("/v1/chat/completions", **MESSAGES, **fields) == answers
    assert fan_out("/v1/completions", prompt="hello", **fields) == answers
    assert fan_out("/v1/responses", input="hello", **fields) == answers


@pytest.mark.parametrize("endless", ["inf", "1e999"])
def test_a_number_without_end_is_more_than_any_limit(endless):
    assert fan_out("/v1/chat/completions", **MESSAGES, n=endless) > 10**9


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("hello", 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2), (["a", [1]], 2), (["a"], 1)],
)
def test_each_of_several_prompts_is_answered_n_times(prompt, prompts):
    assert fan_out("/v1/completions", prompt=prompt) == prompts
    assert fan_out("/v1/completions", prompt=prompt, n=5) == 5 * prompts


def test_prompts_that_come_as_embeddings_are_answered_too():
    assert fan_out("/v1/completions", prompt=["a"], prompt_embeds=["xx", "yy"], n=2) == 6


@given(st.integers(1, MOST_INPUTS))
def test_a_list_of_texts_to_embed_is_one_unit_of_work(number):
    assert fan_out("/v1/embeddings", input=["text"] * number) == 1


def test_a_text_of_many_tokens_is_one_input():
    assert fan_out("/v1/embeddings", input=[7] * 5000) == 1


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("/v1/embeddings", {"input": ["x"] * 2049}, "input"),
        ("/v1/embeddings", {"input": [[1]] * 2049}, "input"),
        ("/v1/rerank", {"query": "x", "documents": ["x"] * 2049}, "documents"),
        ("/v1/rerank", {"query": "x", "documents": {"content": ["x"] * 2049}}, "documents"),
        ("/v1/score", {"text_1": "x", "text_2": ["x"] * 2049}, "text_2"),
    ],
)
def test_more_inputs_than_one_request_may_have_are_refused_by_name(path, fields, name):
    with pytest.raises(RequestError, match=f"^{name} has 2,049 entries; 2,048 are allowed in one request$") as caught:
        fan_out(path, **fields)
    assert caught.value.param == name


def test_it_survives_being_read_aside():
    raw = json.dumps({"prompt": ["x" * 1000] * 20, "n": 3}).encode()
    assert parse_request(raw, BY_PATH["/v1/completions"]).without_bytes().fan_out == 60


FREE, NARROW = "coe-free", "coe-narrow"
RING = Keyring(
    (Key(name="free", sha256=hashed(FREE)), Key(name="narrow", sha256=hashed(NARROW), max_fan_out=2)),
)


@pytest.fixture(scope="module")
def server():
    limits = Limits(max_wait_seconds=0.2, max_fan_out=8)
    with running_server({"math": simulated("math")}, keyring=RING, limits=limits, max_body_bytes=10**7) as running:
        yield running


def ask(server, path, key=FREE, **fields):
    answer = server.ask("POST", path, json.dumps({"model": "math", **fields}), {"authorization": f"Bearer {key}"})
    return answer[0], json.loads(answer[2]).get("error")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route"])
def test_over_the_servers_limit_a_request_is_refused_with_the_limit(server, path):
    assert ask(server, path, **MESSAGES, n=8)[0] == 200
    status, error = ask(server, path, **MESSAGES, n=4000)
    assert (status, error["param"]) == (400, "n")
    assert error["message"] == (
        "the request asks for 4,000 answers at once (n or best_of, times the prompts); "
        "8 are allowed (scheduling.max_fan_out)"
    )


def test_a_long_list_of_prompts_is_refused_though_it_is_read_aside(server):
    prompts = ["x" * 100] * (LARGE_BYTES // 50)
    status, error = ask(server, "/v1/completions", prompt=prompts)
    assert status == 400
    assert f"asks for {len(prompts):,} answers" in error["message"]


def test_over_its_keys_own_limit_a_request_is_refused_with_the_keys_name(server):
    assert ask(server, "/v1/completions", NARROW, prompt=["a", "b"])[0] == 200
    status, error = ask(server, "/v1/completions", NARROW, prompt=["a", "b"], n=2)
    assert status == 400
    assert error["message"].endswith("; key 'narrow' may ask for 2")
