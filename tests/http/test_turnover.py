"""What a client meets while experts come, change and go: names, conversations, streams in progress, counts."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from coe_server.config.schema import load_config
from coe_server.keys import Key, hashed, write_keys
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.cluster.servers import expert, running
from tests.http.server import running_server
from tests.http.test_api import Breaking, DiesAtOnce
from tests.patience import PATIENCE_SECONDS, until
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

# FastAPI silences it with a filter that is not per thread, and here several servers start in threads.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.UnsupportedFieldAttributeWarning")

PRESET = {"name": "thinker", "engine": "preset", "of": "a", "set": {"top_p": 0.5}}
SLOW = {"tokens_per_second": 20, "ttft_seconds": 0.01}


class Served:
    """A server, and the file that it reads again."""

    def __init__(self, file, settings):
        self.file = file
        self.settings = settings
        self.write()

    def write(self, **changes):
        self.settings.update(changes)
        self.file.write_text(yaml.safe_dump(self.settings))

    def reload(self, expected=200, **changes):
        before = dict(self.settings)
        self.write(**changes)
        status, _, body = self.server.ask("POST", "/admin/reload")
        assert status == expected, body
        if status != 200:
            self.write(**before)
        return json.loads(body)["error"]["message"] if status != 200 else json.loads(body)["experts"]

    def say(self, text="hello there", **fields):
        return self.server.chat(fields.pop("model", "auto"), text, **fields)

    @property
    def models(self):
        return [one["id"] for one in self.server.json("/v1/models")["data"]]

    @property
    def rows(self):
        return {one["name"]: one for one in self.server.json("/admin/experts")}


@contextmanager
def served(folder, experts, **settings):
    memory = {"device": "8GiB", "host": "64GiB"}
    there = {"http": {"shutdown_seconds": 1}, "memory": memory, "log": {"decisions": False}, "experts": experts}
    found = Served(folder / "serve.yaml", there | settings)
    with running(lambda: load_config(found.file)) as found.server:
        yield found


class Kept:
    """A server of chat completions: the models it was asked for, and answers that wait for an event."""

    def __enter__(self):
        self.models, self.goes_on = [], threading.Event()
        kept = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                kept.models.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["model"])
                assert kept.goes_on.wait(PATIENCE_SECONDS)
                choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
                answer = json.dumps({"model": kept.models[-1], "choices": [choice]}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *words):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()


def refusal(answer):
    status, _, body = answer
    return status, json.loads(body)["error"]["code"]


def test_names_come_and_go_everywhere_a_client_looks(tmp_path):
    with served(tmp_path, [expert("a"), expert("b"), PRESET], aliases={"gpt": "a"}) as found:
        assert found.models == ["a", "b", "thinker", "gpt"]
        for model in ("a", "b", "thinker"):
            assert found.say(model=model)[0] == 200
        other = {**PRESET, "name": "terse", "of": "c"}
        told = found.reload(experts=[expert("c"), expert("a"), other])
        assert told == {"added": ["c", "terse"], "removed": ["b", "thinker"], "restarted": [], "adjusted": []}
        assert found.models == ["c", "a", "terse", "gpt"]
        for model in ("b", "thinker"):
            assert refusal(found.say(model=model)) == (404, "model_not_found")
            assert found.server.ask("GET", f"/v1/models/{model}")[0] == 404
        for model in ("c", "a", "terse", "gpt"):
            assert found.say(model=model)[0] == 200
        until(lambda: list(found.rows) == ["c", "a", "terse"])
        metrics = found.server.ask("GET", "/metrics")[2].decode()
        assert 'expert="c"' in metrics
        assert [line for line in metrics.splitlines() if 'expert="b"' in line or 'expert="thinker"' in line] == []


def test_a_stream_of_an_expert_that_leaves_is_finished_and_then_its_bytes_are_free(tmp_path):
    with served(tmp_path, [expert("a", **SLOW), expert("b")]) as found, ThreadPoolExecutor() as pool:
        whole = pool.submit(found.say, "word " * 20, model="a", stream=True)
        until(lambda: found.rows["a"]["leases"] == 1)
        found.reload(experts=[expert("b")])
        assert refusal(found.say(model="a")) == (404, "model_not_found")
        assert found.rows["a"]["state"] == "draining"
        status, _, stream = whole.result()
        assert status == 200
        assert stream.count(b" word") == 20
        assert stream.endswith(b"data: [DONE]\n\n")
        until(lambda: list(found.rows) == ["b"])
        assert 'coe_tier_bytes{tier="device"} 0.0' in found.server.ask("GET", "/metrics")[2].decode()


def test_a_changed_expert_answers_the_next_request_with_its_new_settings(tmp_path):
    with served(tmp_path, [expert("a", **SLOW)]) as found, ThreadPoolExecutor() as pool:
        old = pool.submit(found.say, "word " * 20, model="a", stream=True)
        until(lambda: found.rows["a"]["leases"] == 1)
        assert found.reload(experts=[expert("a", max_concurrency=3)])["restarted"] == ["a"]
        assert found.say(model="a")[0] == 200
        assert old.result()[2].endswith(b"data: [DONE]\n\n"), "the new engine came after the last word of the old one"
        assert found.rows["a"]["max_concurrency"] == 3


def test_a_pin_applies_at_once_and_what_an_operator_pinned_stays(tmp_path):
    with served(tmp_path, [expert("a"), expert("b")]) as found:
        assert found.server.ask("POST", "/admin/experts/b/pin")[0] == 200
        assert found.reload(experts=[expert("a", pin="host"), expert("b")])["adjusted"] == ["a"]
        assert [row["pin"] for row in found.rows.values()] == ["host", "device"]
        assert found.reload(experts=[expert("a"), expert("b", ttl_seconds=100)])["adjusted"] == ["a", "b"]
        assert [row["pin"] for row in found.rows.values()] == [None, "device"]


@pytest.fixture
def routed(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    router = {"artifact": "router", "objective": "cheap"}
    with served(tmp_path, [expert(name) for name in SIZES], router=router) as found:
        yield found


def test_a_conversation_whose_expert_left_goes_to_another_one(routed):
    mine = {"coe": {"session": "mine", "objective": "quality"}}
    assert routed.say(TEXTS["french"], **mine)[1]["x-coe-expert"] == "linguist"
    assert routed.say("thanks", **mine)[1]["x-coe-reason"] == "sticky"
    routed.reload(experts=[expert("coder"), expert("big")])
    status, headers, _ = routed.say("thanks", **mine)
    assert status == 200
    assert headers["x-coe-expert"] != "linguist"
    routed.reload(experts=[expert(name) for name in SIZES])
    assert routed.say(TEXTS["french"])[1]["x-coe-expert"] == "linguist"


@pytest.mark.parametrize("left", [{"big"}, {"big", "coder"}])
def test_a_request_falls_back_past_experts_that_left_meanwhile(tmp_path, left):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    engines = {name: Breaking(name, []) for name in SIZES}

    class DiesWhenOthersHaveLeft(DiesAtOnce):
        async def __aenter__(self):
            for name in left:
                await asyncio.to_thread(server.cache.remove, name)
            return await super().__aenter__()

    with running_server(engines, router=Router.load(tmp_path / "router")) as server:
        engines["linguist"].deaths.append(DiesWhenOthersHaveLeft)
        status, headers, body = server.chat(messages=[{"role": "user", "content": TEXTS["french"]}])
        if len(left) == 1:
            assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "coder", "fallback")
        else:
            assert (status, body["error"]["code"]) == (503, "expert_unavailable")


def test_a_response_of_an_expert_that_left_cannot_be_continued(routed):
    asked = {"model": "linguist", "input": "bonjour"}
    body = json.loads(routed.server.ask("POST", "/v1/responses", asked)[2])
    routed.reload(experts=[expert("coder"), expert("big")])
    again = {"input": "encore", "previous_response_id": body["id"], "model": "auto"}
    assert refusal(routed.server.ask("POST", "/v1/responses", again)) == (400, "no_capable_expert")
    assert refusal(routed.say(model="linguist")) == (404, "model_not_found")


def test_the_budget_goes_on_while_experts_come_and_go(routed):
    question = {"model": "auto", "messages": [{"role": "user", "content": TEXTS["code"]}]}

    def budget():
        return json.loads(routed.server.ask("POST", "/v1/route", question)[2])["budget"]

    assert routed.say(TEXTS["code"])[0] == 200
    spent = budget()
    assert spent["mean"] is not None
    routed.reload(experts=[*(expert(name) for name in SIZES), expert("new")])
    assert budget() == spent


@pytest.mark.parametrize(
    ("settings", "experts", "sentence"),
    [
        ({"aliases": {"gpt": "a"}}, ["b"], "aliases.gpt: 'a' is neither an expert nor auto"),
        ({}, ["b", PRESET], "experts.thinker.of: there is no expert 'a'"),
        ({"keys": {"file": "keys.yaml"}}, ["b"], "keys.file: key 'mine' may use expert 'a'; the experts are b"),
        ({"router": {"routes": "routes.yaml"}}, ["b"], "there is no expert 'a'; the experts are b"),
        ({}, ["a", "b", {**expert("c"), "weights_bytes": "9GiB"}], "experts.c: expert 'c' needs 9,216 MiB of device"),
        (
            {},
            ["a", {"name": "b", "engine": "command", "command": "serve --port {port}", "device_bytes": "1GiB"}],
            "experts.b: is the first that takes memory",
        ),
    ],
)
def test_a_reload_that_would_leave_a_name_without_an_expert_is_refused(tmp_path, settings, experts, sentence):
    key = Key(name="mine", sha256=hashed("mine"), experts=frozenset({"a"}), admin=True)
    write_keys(tmp_path / "keys.yaml", (key,))
    routes = {"routes": {"code": {"expert": "a", "examples": ["write python"]}}, "default": "b"}
    (tmp_path / "routes.yaml").write_text(yaml.safe_dump(routes))
    given = [expert(one) if isinstance(one, str) else one for one in experts]
    with served(tmp_path, [expert("a"), expert("b"), PRESET], **settings) as found:
        found.write(experts=given)
        status, _, body = found.server.ask("POST", "/admin/reload", authorization="Bearer mine")
        assert status == 409, body
        assert sentence in json.loads(body)["error"]["message"]
        answer = found.server.ask(
            *("POST", "/v1/chat/completions"),
            {"model": "a", "messages": [{"role": "user", "content": "hi"}]},
            authorization="Bearer mine",
        )
        assert answer[0] == 200


def test_a_preset_that_becomes_an_expert_of_its_own_changes_no_body_any_more(tmp_path):
    cut = {"name": "terse", "engine": "preset", "of": "a", "force": {"max_tokens": 2}}
    with served(tmp_path, [expert("a"), cut]) as found:
        short = json.loads(found.say("word " * 20, model="terse")[2])["usage"]["completion_tokens"]
        assert short == 2
        found.reload(experts=[expert("a")])
        found.reload(experts=[expert("a"), expert("terse")])
        assert json.loads(found.say("word " * 20, model="terse")[2])["usage"]["completion_tokens"] > 2


def test_a_name_is_not_given_to_a_preset_while_its_engine_still_answers(tmp_path):
    other = {**PRESET, "name": "b"}
    with served(tmp_path, [expert("a"), expert("b", **SLOW)]) as found, ThreadPoolExecutor() as pool:
        whole = pool.submit(found.say, "word " * 20, model="b", stream=True)
        until(lambda: found.rows["b"]["leases"] == 1)
        found.reload(experts=[expert("a")])
        refused = found.reload(409, experts=[expert("a"), other])
        assert "experts.b: its engine still answers what was asked of it; reload again once it is gone" in refused
        assert whole.result()[2].endswith(b"data: [DONE]\n\n")
        until(lambda: list(found.rows) == ["a"])
        assert found.reload(experts=[expert("a"), other])["added"] == ["b"]
        assert found.say(model="b")[0] == 200


def test_a_request_that_waits_while_its_preset_gets_another_base_asks_the_engine_it_waited_for(tmp_path):
    def remote(name, there):
        return {
            "name": name,
            "engine": "remote",
            "base_url": f"http://127.0.0.1:{there.port}/v1",
            "model": f"{name}-model",
        }

    with Kept() as one, Kept() as other, ThreadPoolExecutor() as pool:
        team = [{**remote("a", one), "max_concurrency": 1}, remote("b", other)]
        with served(tmp_path, [*team, PRESET]) as found:
            first = pool.submit(found.say, model="a")
            until(lambda: one.models == ["a-model"])
            waits = pool.submit(found.say, model="thinker")
            until(lambda: found.rows["a"]["queued"] == 1)
            found.reload(experts=[*team, {**PRESET, "of": "b"}])
            one.goes_on.set()
            assert [asked.result()[0] for asked in (first, waits)] == [200, 200]
            assert one.models == ["a-model", "a-model"]
            other.goes_on.set()
            assert found.say(model="thinker")[0] == 200
            assert other.models == ["b-model"]


def test_an_expert_that_comes_back_before_it_was_gone_is_asked_for_the_model_that_it_has(tmp_path):
    with Kept() as one, ThreadPoolExecutor() as pool:
        base = {"engine": "remote", "base_url": f"http://127.0.0.1:{one.port}/v1"}
        old, new = ({"name": "a", **base, "model": model, "max_concurrency": 1} for model in ("old", "new"))
        with served(tmp_path, [old, expert("b")]) as found:
            asked = [pool.submit(found.say, model="a")]
            until(lambda: one.models == ["old"])
            asked.append(pool.submit(found.say, model="a"))
            until(lambda: found.rows["a"]["queued"] == 1)
            found.reload(experts=[expert("b")])
            found.reload(experts=[new, expert("b")])
            one.goes_on.set()
            assert [each.result()[0] for each in asked] == [200, 200]
            assert one.models == ["old", "old"]
            assert found.say(model="a")[0] == 200
            assert one.models[-1] == "new"
