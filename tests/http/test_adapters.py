"""Adapters over HTTP: chosen and named as experts, on their base's slot, and never answered for by their base."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coe_server.cache.policy import Limits
from coe_server.cache.tiers import Bytes
from coe_server.engines.adapter import Adapter, read_adapter
from coe_server.engines.simulated import SimulatedEngine
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.engines.conftest import StandInLaunch, model_folder, stand_in  # noqa: F401  fixtures
from tests.engines.small_adapter import make_adapter
from tests.http.server import Running, running_server
from tests.patience import PATIENCE_SECONDS, until
from tests.routing.small_artifact import TEXTS, held_out, small_artifact

FAST = {"start_seconds": 0.01, "wake_seconds": 0.01, "sleep_seconds": 0.01, "ttft_seconds": 0.0}
NAMES = {"linguist": "coder", "poet": "coder"}
Served = Callable[..., Any]


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[Adapter, ...]:
    return tuple(read_adapter(name, make_adapter(tmp_path / name, seed=seed)) for seed, name in enumerate(NAMES))


@pytest.fixture
def served(stand_in: StandInLaunch, adapters: Sequence[Adapter]) -> Served:  # noqa: F811
    """A server with a base, its two adapters and another expert; one of the two engines is on the device."""

    @contextmanager
    def serve(fault: str = "", router: Router | None = None) -> Iterator[Running]:
        base = VllmEngine(stand_in(fault, name="coder", adapters=tuple(adapters)))
        room = base.footprint.device_awake
        big = SimulatedEngine("big", weights_bytes=room // 2, tokens_per_second=1e5, **FAST)
        with running_server(
            {"coder": base, "big": big},
            router=router,
            limits=Limits(max_wait_seconds=PATIENCE_SECONDS),
            capacity=Bytes(room, 1 << 40),
            bases=NAMES,
            models={name: name for name in NAMES},
        ) as server:
            yield server

    return serve


def text_of(server: Running, model: str) -> str:
    """The stand-in's answer: a digest of the weights that it used."""
    asked = json.dumps({"model": model, "prompt": "hi", "max_tokens": 64})
    status, headers, raw = server.ask("POST", "/v1/completions", asked)
    assert (status, headers.get("x-coe-expert")) == (200, model), raw
    return str(json.loads(raw)["choices"][0]["text"])


def to_host(server: Running) -> None:
    """Have the base sleep, by asking for the other expert."""
    asked = json.dumps({"model": "big", "prompt": "hi", "max_tokens": 1})
    assert server.ask("POST", "/v1/completions", asked)[0] == 200
    assert {one.name: one.residency for one in server.cache.status()}["coder"] == "host"


def test_a_base_and_its_adapters_answer_by_name_without_a_move_between_them(served: Served) -> None:
    with served() as server:
        right = {name: text_of(server, name) for name in ("coder", *NAMES)}
        assert len(set(right.values())) == 3
        before = [one.last_move for one in server.cache.status()]
        for _ in range(5):
            assert {name: text_of(server, name) for name in right} == right
        assert [one.last_move for one in server.cache.status()] == before
        to_host(server)
        assert {name: text_of(server, name) for name in right} == right


def test_a_router_chooses_an_adapter_and_sees_all_siblings_where_the_base_is(tmp_path: Path, served: Served) -> None:
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    with served(router=Router.load(tmp_path / "router")) as server:
        text_of(server, "coder")
        asked = {"prompt": TEXTS["french"], "max_tokens": 64}
        _, headers, raw = server.ask("POST", "/v1/completions", json.dumps(asked))
        assert (headers["x-coe-expert"], headers["x-coe-residency"]) == ("linguist", "device")
        assert json.loads(raw)["choices"][0]["text"] == text_of(server, "linguist")
        told = json.loads(server.ask("POST", "/v1/route", json.dumps(asked))[2])["ranking"]
    assert {one["expert"]: one["residency"] for one in told} == {"coder": "device", "linguist": "device", "big": "disk"}


def test_adapters_are_listed_with_their_base_and_counted_by_their_names(served: Served) -> None:
    with served() as server:
        text_of(server, "linguist")
        listed = {one["id"] for one in json.loads(server.ask("GET", "/v1/models")[2])["data"]}
        assert listed == {"coder", "big", *NAMES}
        rows = {row["name"]: row for row in json.loads(server.ask("GET", "/admin/experts")[2])}
        assert {name: rows[name]["base"] for name in rows} == {"coder": None, "big": None, **NAMES}
        assert rows["linguist"]["residency"] == rows["coder"]["residency"] == "device"
        assert rows["linguist"]["bytes"] == {"device": 0, "host": 0}
        until(lambda: b'expert="linguist"' in server.ask("GET", "/metrics")[2])


@pytest.mark.parametrize("fault", ["loses its adapters", "forgets its adapters", "loses its adapters for good"])
def test_a_lost_adapter_is_back_before_it_answers(served: Served, fault: str) -> None:
    with served(fault) as server:
        right = {name: text_of(server, name) for name in ("coder", *NAMES)}
        to_host(server)
        assert {name: text_of(server, name) for name in right} == right


def test_an_adapter_that_stays_lost_is_refused_while_its_base_answers(served: Served) -> None:
    with served("loses its adapters for good, over restarts") as server:
        base = text_of(server, "coder")
        text_of(server, "linguist")
        to_host(server)
        asked = json.dumps({"model": "linguist", "prompt": "hi"})
        for _ in range(4):  # more than count as a failure of an expert
            status, _, raw = server.ask("POST", "/v1/completions", asked)
            assert (status, json.loads(raw)["error"]["code"]) == (502, "engine_error")
        assert text_of(server, "coder") == base
