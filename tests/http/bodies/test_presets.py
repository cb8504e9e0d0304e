"""Presets: what they change in a body, and that they are a second name on their base's engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.engines.engine import EngineRequest, EngineResponse
from coe_server.engines.simulated import SimulatedEngine
from coe_server.http.bodies.body import parse_request, read_body
from coe_server.http.bodies.presets import Preset
from coe_server.http.routed_request import RoutedRequest
from coe_server.http.serving import Decides, Service
from coe_server.routing import artifact as artifacts
from coe_server.routing.decision import RouteOptions
from coe_server.routing.router import Router
from tests.http.server import Running, running_server
from tests.http.test_api import GIB
from tests.patience import until
from tests.routing.small_artifact import TEXTS, held_out, small_artifact

MESSAGES = [{"role": "user", "content": "hello there"}]
THINKER = Preset({"reasoning_effort": "high", "max_tokens": 900}, {"temperature": 0.6}, ("top_k",))


def sent(preset: Preset, endpoint: str, **given: Any) -> dict[str, Any]:
    """The body as the engine gets it."""
    body = read_body(json.dumps(given).encode())
    found: dict[str, Any] = json.loads(b"".join(body.for_engine("base", preset.changes(endpoint, body))))
    assert found.pop("model") == "base"
    return found


def test_a_preset_fills_replaces_and_drops() -> None:
    assert sent(THINKER, "chat", top_k=5, temperature=1, top_p=0.9) == {
        "top_p": 0.9,
        "temperature": 0.6,
        "reasoning_effort": "high",
        "max_tokens": 900,
    }


def test_an_endpoints_own_members_stand_for_those_of_all() -> None:
    preset = replace(THINKER, own={"responses": Preset({"reasoning": {"summary": "auto"}}, {}, ())})
    assert sent(preset, "responses", top_k=5) == {"top_k": 5, "reasoning": {"summary": "auto"}}
    assert sent(preset, "chat", max_tokens=1) == sent(THINKER, "chat", max_tokens=1)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_what_the_caller_gave_stays_in_whatever_spelling(limit: str) -> None:
    told = sent(THINKER, "chat", reasoning={"effort": "low"}, **{limit: 5})
    assert told == {"reasoning": {"effort": "low"}, limit: 5, "temperature": 0.6}


@pytest.mark.parametrize(
    ("endpoint", "filled"),
    [
        ("chat", {"reasoning_effort": "high", "max_tokens": 900, "temperature": 0.6}),
        ("completions", {"max_tokens": 900, "temperature": 0.6}),
        ("responses", {"reasoning": {"effort": "high"}, "max_output_tokens": 900, "temperature": 0.6}),
        ("messages", {"max_tokens": 900, "temperature": 0.6}),
        ("embeddings", {}),
        ("tokenize", {}),
    ],
)
def test_each_endpoint_gets_its_own_words(endpoint: str, filled: dict[str, Any]) -> None:
    assert sent(THINKER, endpoint) == filled


def test_objects_merge_by_key_and_the_callers_keys_win_where_the_preset_only_fills() -> None:
    preset = Preset({"chat_template_kwargs": {"thinking": True, "deep": {"a": 1, "b": 2}}}, {}, ())
    told = sent(preset, "chat", chat_template_kwargs={"thinking": False, "deep": {"b": 3}, "own": 1})
    assert told["chat_template_kwargs"] == {"thinking": False, "deep": {"a": 1, "b": 3}, "own": 1}


def test_objects_merge_by_key_and_the_presets_keys_win_where_it_forces() -> None:
    preset = Preset({}, {"chat_template_kwargs": {"thinking": True}, "stop": "END"}, ())
    told = sent(preset, "chat", chat_template_kwargs={"thinking": False, "own": 1}, stop={"not": "an object to merge"})
    assert told == {"chat_template_kwargs": {"thinking": True, "own": 1}, "stop": "END"}


def test_a_forced_limit_and_a_forced_effort_replace_every_spelling() -> None:
    preset = Preset({}, {"max_completion_tokens": 7, "reasoning_effort": "none"}, ())
    assert sent(preset, "chat", max_tokens=5, reasoning={"effort": "high", "summary": "auto"}) == {
        "max_completion_tokens": 7,
        "reasoning_effort": "none",
        "reasoning": {"summary": "auto"},
    }
    assert sent(preset, "responses", max_output_tokens=5, reasoning={"effort": "high", "summary": "auto"}) == {
        "max_output_tokens": 7,
        "reasoning": {"effort": "none", "summary": "auto"},
    }


def test_an_object_of_reasoning_is_filled_but_for_an_effort_that_the_caller_gave() -> None:
    preset = Preset({"reasoning": {"effort": "high", "summary": "auto"}}, {}, ())
    assert sent(preset, "chat", reasoning_effort="low") == {"reasoning_effort": "low", "reasoning": {"summary": "auto"}}
    assert sent(preset, "responses", reasoning={"effort": "low"}) == {"reasoning": {"effort": "low", "summary": "auto"}}
    only = Preset({"reasoning": {"effort": "high"}}, {}, ())
    assert sent(only, "chat", reasoning_effort="low") == {"reasoning_effort": "low"}


def test_what_is_dropped_is_dropped_in_every_spelling() -> None:
    preset = Preset({}, {}, ("max_tokens", "reasoning_effort"))
    given = {"max_completion_tokens": 5, "reasoning_effort": "low", "reasoning": {"effort": "low"}, "seed": 1}
    assert sent(preset, "chat", **given) == {"seed": 1}
    assert sent(Preset({}, {}, ("reasoning",)), "chat", **given) == {"max_completion_tokens": 5, "seed": 1}


NAMES = st.sampled_from(["a", "b", "c", "model", "coe"])
VALUES = st.recursive(st.integers() | st.text(max_size=3) | st.none(), lambda i: st.dictionaries(NAMES, i, max_size=2))
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
OWN = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=3)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


@given(OBJECTS, OWN, OWN, st.lists(st.sampled_from("abc"), max_size=2))
def test_every_body_is_what_the_rule_says(
    given: dict[str, Any], fills: dict[str, Any], forces: dict[str, Any], drops: list[str]
) -> None:
    fills = {key: value for key, value in fills.items() if value != {}}
    told = sent(Preset(fills, forces, tuple(drops)), "chat", **given)
    kept = {key: value for key, value in given.items() if key not in {"coe", "model", *drops}}
    assert told == merged(merged(fills, kept), forces)


class Recording(SimulatedEngine):
    """Keeps what it was sent."""

    def __init__(self, name: str) -> None:
        timing = {"start_seconds": 0.01, "wake_seconds": 0.01, "sleep_seconds": 0.01, "ttft_seconds": 0.0}
        super().__init__(name, weights_bytes=GIB, tokens_per_second=1e5, **timing)
        self.bodies: list[dict[str, Any]] = []
        self.starts = 0

    async def start(self, *given: Any, **named: Any) -> None:
        self.starts += 1
        await super().start(*given, **named)

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        self.bodies.append(json.loads(request.whole_body))
        async with super().send(request) as answer:
            yield answer


@pytest.mark.parametrize(
    ("preset", "given", "may_be"),
    [
        (Preset({"max_tokens": 9}, {}, ()), {}, True),
        (Preset({"seed": 1}, {}, ()), {}, False),
        (Preset({"seed": 1}, {"stop": "END"}, ()), {}, True),
        (Preset({"seed": 1}, {}, ()), {"max_tokens": 1}, True),
    ],
)
def test_an_empty_answer_is_whole_where_the_caller_or_the_preset_asked_for_an_end(
    preset: Preset, given: dict[str, Any], may_be: bool
) -> None:
    parsed = parse_request(json.dumps({"messages": MESSAGES, **given}).encode(), None)
    service = cast(Service, SimpleNamespace(presets={"a": preset}, serving=None))
    request = RoutedRequest(
        service,
        service.serving,
        cast(Decides, None),
        parsed,
        None,
        parsed.conversation,
        RouteOptions(),
        None,
        False,
        {},
        None,
    )
    assert request.may_be_silent("a") is may_be
    assert request.may_be_silent("base") is parsed.may_be_silent


@pytest.fixture
def engine() -> Recording:
    return Recording("qwen3")


@pytest.fixture
def server(engine: Recording) -> Iterator[Running]:
    bases = {"thinker": "qwen3", "terse": "qwen3"}
    presets = {"thinker": THINKER, "terse": Preset({}, {"max_tokens": 1}, ())}
    with running_server({"qwen3": engine}, bases=bases, presets=presets) as running:
        yield running


def admin(server: Running, path: str, method: str = "GET") -> tuple[int, Any]:
    status, _, raw = server.ask(method, path)
    return status, json.loads(raw)


def test_a_preset_answers_by_its_name_from_its_bases_engine(server: Running, engine: Recording) -> None:
    for name in ("qwen3", "thinker", "terse"):
        status, headers, body = server.chat(model=name, top_k=4)
        assert (status, headers["x-coe-expert"], body["model"]) == (200, name, name)
    assert engine.starts == 1
    plain, thinker, terse = engine.bodies
    assert plain == {"messages": MESSAGES, "model": "qwen3", "top_k": 4}
    assert thinker == {
        "messages": MESSAGES,
        "model": "qwen3",
        "temperature": 0.6,
        "reasoning_effort": "high",
        "max_tokens": 900,
    }
    assert terse == {"messages": MESSAGES, "model": "qwen3", "top_k": 4, "max_tokens": 1}


def test_a_preset_streams(server: Running) -> None:
    asked = json.dumps({"model": "thinker", "messages": MESSAGES, "stream": True})
    status, headers, raw = server.ask("POST", "/v1/chat/completions", asked)
    assert (status, headers["x-coe-expert"]) == (200, "thinker")
    assert raw.rstrip().endswith(b"data: [DONE]")
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    assert {event["model"] for event in events} == {"thinker"}


def test_a_large_body_is_changed_as_a_small_one_is(server: Running, engine: Recording) -> None:
    long = [{"role": "user", "content": "word " * 15_000}]
    assert server.chat(model="thinker", messages=long, top_k=4, reasoning={"effort": "low"})[0] == 200
    (body,) = engine.bodies
    assert (body["reasoning"], body["temperature"]) == ({"effort": "low"}, 0.6)
    assert body.keys().isdisjoint({"top_k", "reasoning_effort"})


def test_a_router_chooses_a_preset_and_sees_it_where_its_base_is(tmp_path: Path) -> None:
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    coder = Recording("coder")
    with running_server(
        {"coder": coder, "big": Recording("big")},
        router=Router.load(tmp_path / "router"),
        bases={"linguist": "coder"},
        presets={"linguist": Preset({"seed": 7}, {}, ())},
    ) as server:
        assert server.chat(model="coder")[0] == 200
        _, headers, _ = server.chat(messages=[{"role": "user", "content": TEXTS["french"]}])
        asked = {"messages": [{"role": "user", "content": TEXTS["french"]}]}
        _, _, raw = server.ask("POST", "/v1/route", json.dumps(asked))
    assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("linguist", "mapped")
    assert headers["x-coe-residency"] == "device"
    assert coder.bodies[-1]["seed"] == 7
    assert coder.starts == 1
    residency = {one["expert"]: one["residency"] for one in json.loads(raw)["ranking"]}
    assert residency == {"coder": "device", "linguist": "device", "big": "disk"}


def test_presets_are_listed_with_their_base_and_hold_nothing(server: Running) -> None:
    assert {one["id"] for one in admin(server, "/v1/models")[1]["data"]} == {"qwen3", "thinker", "terse"}
    assert server.chat(model="thinker")[0] == 200
    rows = {row["name"]: row for row in admin(server, "/admin/experts")[1]}
    assert {name: row["base"] for name, row in rows.items()} == {"qwen3": None, "thinker": "qwen3", "terse": "qwen3"}
    assert rows["thinker"]["residency"] == rows["qwen3"]["residency"] == "device"
    assert (rows["qwen3"]["bytes"]["device"], rows["thinker"]["bytes"]) == (GIB, {"device": 0, "host": 0})


def test_a_preset_is_loaded_with_its_base_and_moved_only_by_its_name(server: Running) -> None:
    status, row = admin(server, "/admin/experts/thinker/load", "POST")
    assert (status, row["name"], row["state"]) == (200, "thinker", "device")
    for move in ("unload", "pin", "unpin"):
        status, refused = admin(server, f"/admin/experts/thinker/{move}", "POST")
        assert status == 409
        assert refused["error"]["message"] == "expert 'thinker' shares the engine of its base; ask for 'qwen3'"
    assert admin(server, "/admin/experts/qwen3/unload", "POST")[0] == 200


def test_an_unknown_name_is_told_presets_too(server: Running) -> None:
    status, _, answer = server.chat(model="gpt-5")
    assert (status, answer["error"]["message"]) == (404, "unknown model 'gpt-5'; known: qwen3, thinker, terse")


def test_metrics_count_a_presets_answers_by_its_name_and_its_bytes_once(server: Running) -> None:
    assert server.chat(model="thinker")[0] == 200
    until(lambda: b'expert="thinker"' in server.ask("GET", "/metrics")[2])
    held = [
        line for line in server.ask("GET", "/metrics")[2].decode().splitlines() if line.startswith("coe_expert_bytes")
    ]
    assert not [line for line in held if "thinker" in line]
