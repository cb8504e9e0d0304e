"""Every open path as a client meets it, and that no other path of an engine is open."""

import json

import openai
import pytest

from coe_server.engines.engine import EngineRequest
from coe_server.http.apis import APIS
from coe_server.http.browsers import Hosts
from coe_server.routing import artifact as artifacts
from coe_server.routing.by_name import NamedRouter
from coe_server.routing.capabilities import Capabilities
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import error_of, simulated
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

MESSAGES = [{"role": "user", "content": "hello there"}]
BODIES = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hello there"},
    "/v1/responses": {"input": "hello there"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": "hello there"},
    "/v1/rerank": {"query": "hello", "documents": ["hello there"]},
    "/v1/score": {"text_1": "hello", "text_2": "there"},
    "/v1/audio/speech": {"input": "hello there"},
    "/v1/images/generations": {"prompt": "hello there"},
    "/tokenize": {"prompt": "hello there"},
    "/detokenize": {"tokens": [1, 2]},
}
ROUTED = [api.path for api in APIS if api.routed]


class Listening:
    """An engine that keeps what it was sent."""

    def __init__(self, engine):
        self.engine = engine
        self.seen = []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def send(self, request: EngineRequest):
        self.seen.append(request)
        return self.engine.send(request)


@pytest.fixture(scope="module")
def engines():
    return {name: Listening(simulated(name)) for name in SIZES}


@pytest.fixture(scope="module")
def server(engines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    names = Hosts(frozenset({"ai.example.com"}))
    with running_server(engines, router=Router.load(folder), hosts=names) as running:
        yield running


def post(server, path, **fields):
    status, headers, raw = server.ask("POST", path, json.dumps({**BODIES[path], **fields}))
    return status, headers, json.loads(raw) if headers["content-type"] == "application/json" else {}


def test_there_is_a_body_for_every_api():
    assert set(BODIES) == {api.path for api in APIS if not api.form}  # forms: test_uploads.py


@pytest.mark.parametrize("path", BODIES)
def test_a_named_expert_answers_on_every_path(server, path):
    status, headers, body = post(server, path, model="coder")
    assert status == 200
    assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("coder", "requested")
    assert "error" not in body


@pytest.mark.parametrize("path", ROUTED)
def test_what_can_be_routed_is_routed_by_its_text(server, path):
    question = {
        "prompt": TEXTS["french"],
        "input": TEXTS["french"],
        "messages": [{"role": "user", "content": TEXTS["french"]}],
    }
    fields = {key: question[key] for key in BODIES[path] if key in question}
    status, headers, _ = post(server, path, **fields)
    assert status == 200
    assert (headers["x-coe-expert"], headers["x-coe-category"]) == ("linguist", "french")


@pytest.mark.parametrize("path", [path for path in BODIES if path not in ROUTED])
@pytest.mark.parametrize("model", [None, "auto", "auto:cheap"])
def test_what_means_nothing_without_its_expert_must_name_one(server, path, model):
    status, error = error_of(post(server, path, **({"model": model} if model else {})))
    assert (status, error["param"]) == (400, "model")
    media = path.startswith(("/v1/audio", "/v1/images"))
    told = "is routed only by a route with this path in match.path" if media else "is not routed"
    assert f"{path} {told}; set `model` to an expert" in error["message"]


@pytest.mark.parametrize("path", BODIES)
def test_every_byte_but_model_and_coe_reaches_the_engine(server, engines, path):
    inner = json.dumps(BODIES[path])[1:-1]
    body = f'{{ "x_new": 1.50e+3,"model" :"coder", {inner}, "coe":{{"priority":"high"}}, "\\u00e9":[ ] }}'
    assert server.ask("POST", path, body)[0] == 200
    sent = engines["coder"].seen[-1]
    assert sent.path == path
    assert sent.body.decode() == f'{{ "x_new": 1.50e+3,"model" :"coder", {inner}, "\\u00e9":[ ] }}'


def test_the_engine_is_told_nothing_of_the_callers_keys(server, engines):
    headers = {"Authorization": "Bearer secret", "X-Api-Key": "secret", "Cookie": "a=secret", "anthropic-version": "1"}
    server.ask("POST", "/v1/messages", json.dumps({**BODIES["/v1/messages"], "model": "coder"}), headers)
    assert dict(engines["coder"].seen[-1].headers) == {"content-type": "application/json", "anthropic-version": "1"}


@pytest.mark.parametrize("end", ["/", "//", "%2f", "/?x=1"])
@pytest.mark.parametrize("path", [*BODIES, "/v1/route"])
def test_a_slash_at_the_end_is_served_as_without(server, engines, path, end):
    body = json.dumps({**BODIES.get(path, BODIES["/v1/chat/completions"]), "model": "coder"})
    behind_tls = {"host": "ai.example.com", "x-forwarded-proto": "https"}
    status, headers, _ = server.ask("POST", path + end, body, behind_tls)
    assert status == 200
    assert "location" not in headers
    if path in BODIES:
        assert headers["x-coe-expert"] == "coder"
        assert engines["coder"].seen[-1].path == path


def test_a_slash_at_the_end_has_the_label_of_the_path_without_in_the_metrics(server):
    body = json.dumps({**BODIES["/v1/completions"], "model": "coder"})

    def counted():
        lines = server.ask("GET", "/metrics/")[2].decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if "/v1/completions" in line}

    server.ask("POST", "/v1/completions", body)
    before = counted()
    server.ask("POST", "/v1/completions/", body)
    label = 'coe_requests_total{endpoint="/v1/completions",status="200"}'
    assert counted()[label] == before[label] + 1
    assert counted().keys() == before.keys()


ENGINE_ONLY = [
    *(
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/server_info",
        "/pause",
        "/resume",
    ),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/invocations", "/update_weights", "/start_profile", "/load"),
    *("/version", "/abort_requests", "/release_kv_cache_memory", "/v1/chat/completions/render", "/ping"),
]


@pytest.mark.parametrize("path", ENGINE_ONLY)
@pytest.mark.parametrize(
    "prefix", ["", "/v1/chat/completions/..", "//", "/v1/models/..", "/v1/chat/completions/%2e%2e"]
)
def test_no_other_path_of_an_engine_is_open(server, engines, path, prefix):
    seen = {name: len(engine.seen) for name, engine in engines.items()}
    for method in ("GET", "POST"):
        status, _, _ = server.ask(method, prefix + path, b"{}" if method == "POST" else None)
        assert status in {404, 405}, (method, prefix + path)
    assert {name: len(engine.seen) for name, engine in engines.items()} == seen


def test_the_official_client_reads_every_kind_of_answer(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        assert client.completions.create(model="coder", prompt="a b").choices[0].text == "coder answers: a b"
        pieces = client.completions.create(model="coder", prompt="a b", stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == "coder answers: a b"
        assert client.responses.create(model="coder", input="a b").output_text == "coder answers: a b"
        with client.responses.stream(model="coder", input="a b") as stream:
            assert stream.get_final_response().output_text == "coder answers: a b"
        assert len(client.embeddings.create(model="coder", input=["a", "b"]).data) == 2
        assert client.models.retrieve("auto:cheap").owned_by == "router"
        assert client.models.retrieve("coder").owned_by == "expert"
        with pytest.raises(openai.NotFoundError, match="unknown model 'gpt-5'"):
            client.models.retrieve("gpt-5")


@pytest.mark.parametrize(
    ("able", "path", "fields", "sentence"),
    [
        ({"endpoints": frozenset({"embeddings"})}, "/v1/chat/completions", {}, "does not serve chat requests"),
        ({"endpoints": frozenset({"chat"})}, "/v1/messages", {}, "does not serve messages requests"),
        ({"tools": False}, "/v1/chat/completions", {"tools": [{}]}, "cannot call tools"),
        (
            {"modalities": {"image": False}},
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "cannot see images",
        ),
        (
            {"modalities": {"audio": False}},
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA"}}]}]},
            "cannot take audio",
        ),
        (
            {"modalities": {"file": False}},
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "AA"}]}]},
            "cannot take files",
        ),
    ],
)
def test_a_request_that_an_expert_cannot_take_never_reaches_it(able, path, fields, sentence):
    engine = Listening(simulated("a"))
    with running_server({"a": engine}, router=NamedRouter(["a"], {"a": Capabilities(**able)})) as server:
        status, error = error_of(post(server, path, model="a", **fields))
        assert (status, error["code"]) == (400, "no_capable_expert")
        assert sentence in error["message"]
        assert engine.seen == []


TABLE = "\n".join(f"| {name:<30} | {'paris':<30} | {'yes':<20} |" for name in ("alice", "bob") * 200)  # 4,516 tokens


@pytest.mark.parametrize("served", [tuple(SIZES), ("coder", "linguist")])
def test_a_text_with_fewer_tokens_than_its_bytes_suggest_goes_to_an_expert_with_room(tmp_path, served):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    router = Router.load(tmp_path / "router", capabilities=dict.fromkeys(SIZES, Capabilities(context_tokens=8192)))
    with running_server({name: simulated(name) for name in served}, router=router) as server:
        body = {"messages": [{"role": "user", "content": f"which city?\n{TABLE}"}], "max_tokens": 200}
        assert len(TABLE) / 4 > 8192
        assert post(server, "/v1/chat/completions", **body)[0] == 200
        body["messages"][0]["content"] = "word " * 12_000
        status, headers, raw = post(server, "/v1/chat/completions", **body)
        assert (status, raw["error"]["code"], "retry-after" in headers) == (400, "no_capable_expert", False)
        for name in SIZES:
            assert (f"{name}: holds 8192 tokens" in raw["error"]["message"]) == (name in served)


def test_a_dry_run_takes_any_kind_of_body(server):
    for path in ROUTED:
        status, _, raw = server.ask("POST", "/v1/route", json.dumps(BODIES[path]))
        assert status == 200, raw
        assert json.loads(raw)["expert"] in SIZES
