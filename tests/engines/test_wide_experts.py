"""Experts of several cards without vLLM: `width` of simulated and command experts, alone and in a whole server."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.build.capacity import build_capacity
from coe_server.build.experts import build_experts
from coe_server.cache.tiers import Bytes
from coe_server.cli import app
from coe_server.config.schema import ServerConfig, load_config
from coe_server.engines.cards import CardFacts, Cards
from coe_server.engines.command import CommandEngine
from coe_server.engines.command_run import CommandLaunch
from coe_server.engines.engine import EngineRequest, Footprint
from coe_server.errors import ConfigError
from tests.docs.reader import reading
from tests.patience import PATIENCE_SECONDS

from .conftest import DEADLINE_SECONDS

GIB = 1 << 30
STAND_IN = str(Path(__file__).with_name("stand_in_command.py"))
WIDE = {"name": "wide", "engine": "simulated", "weights_bytes": "30GiB", "width": 2}
SINGLES = [{"name": name, "engine": "simulated", "weights_bytes": "12GiB"} for name in "ab"]
QUICK = {"start_seconds": 0.01, "wake_seconds": 0.01, "sleep_seconds": 0.01, "tokens_per_second": 10_000}
COMMAND = {"name": "tool", "engine": "command", "command": "sh {port}", "sleep": "POST /s", "wake": "POST /w"}
TWO_CARDS = {"cards": 2, "device": "16GiB", "host": "99GiB"}


def load(folder: Path, *experts: dict[str, Any], memory: dict[str, Any] | None = None, **more: Any) -> ServerConfig:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"experts": list(experts), "memory": memory or TWO_CARDS, **more}))
    return load_config(path)


def test_a_simulated_expert_is_spread_over_its_cards_and_single_ones_may_lie_on_any(tmp_path: Path) -> None:
    config = load(tmp_path, WIDE, SINGLES[0])
    wide, single = build_experts(config)
    assert (wide.width, wide.seats, single.seats) == (2, ((0, 1),), ((0,), (1,)))
    assert wide.engine.footprint == Footprint(device_awake=15 * GIB, host_image=30 * GIB)
    assert build_capacity(config) == Bytes((16 * GIB, 16 * GIB), 99 * GIB)


def test_a_command_has_its_bytes_on_each_card_and_its_image_is_that_of_all(tmp_path: Path) -> None:
    memory = {"cards": 2, "device": "2MiB", "host": "9MiB"}
    config = load(tmp_path, {**COMMAND, "device_bytes": 1024, "width": 2}, memory=memory, vllm={"platform": "cpu"})
    (tool,) = build_experts(config)
    assert (tool.width, tool.seats) == (2, ((0, 1),))
    assert tool.engine.footprint == Footprint(device_awake=1024, host_image=2048)


def test_a_share_of_memory_is_divided_among_the_cards(tmp_path: Path) -> None:
    one = build_capacity(load(tmp_path, WIDE, memory={"device": "50%"}))
    two = build_capacity(load(tmp_path, WIDE, memory={"device": "50%", "cards": 2}))
    assert two.on(0) == two.on(1)
    assert two.device == pytest.approx(one.device, rel=0.3)


@pytest.mark.parametrize(
    ("experts", "memory", "sentence"),
    [
        ([WIDE], {"device": "16GiB"}, "experts.wide: takes 2 cards, but memory.cards is 1; raise it"),
        ([{**WIDE, "width": 0}], {"cards": 2}, "experts.wide.width: "),
        ([WIDE], {"cards": 0}, "memory.cards: "),
        ([{"name": "x", "engine": "remote", "base_url": "http://a/v1", "model": "m", "width": 2}], {}, "x.width: "),
    ],
)
def test_a_width_that_cannot_be_had_is_named(
    tmp_path: Path, experts: list[dict[str, Any]], memory: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as told:
        build_experts(load(tmp_path, *experts, memory=memory))
    assert sentence in str(told.value)


def test_cards_without_a_gpu_are_named_by_their_index(tmp_path: Path) -> None:
    memory = {"cards": 4, "device": "16GiB", "host": "99GiB"}
    pinned_down = {**WIDE, "cards": [2, 3]}
    (wide,) = build_experts(load(tmp_path, pinned_down, memory=memory))
    assert wide.seats == ((2, 3),)
    for cards, sentence in (([4, 5], "cards: 4 is not a card"), ([1], "there is no seat for an expert that needs")):
        with pytest.raises(ConfigError, match=sentence):
            build_experts(load(tmp_path, {**WIDE, "cards": cards}, memory=memory))


def test_the_wait_bound_is_told_for_experts_that_share_no_card_with_the_others(tmp_path: Path) -> None:
    memory = {"cards": 4, "device": "16GiB", "host": "99GiB"}
    apart = [{**WIDE, "cards": [2, 3]}, *({**one, "cards": [0, 1]} for one in SINGLES)]
    result = validated(load(tmp_path, *apart, memory=memory), tmp_path)
    # 30 s, a turn of 480 s, a switch of 30 + 2 s, a start elsewhere of 30 + 2 s, and two such starts of the others
    assert "At most 638 s for wide, which share no card with the others." in result
    assert "3 x (a turn of 480 s and a switch of 34.0 s, estimated, and a start on other cards of 32.0 s)" in result
    assert "for starts on other cards, one for each of the 2 experts that share their cards, and the present" in result
    together = validated(load(tmp_path, WIDE, *SINGLES, memory=memory), tmp_path)
    assert "one for each of the 3 experts that share their cards, and the present one" in together
    assert "At most" not in together


def validated(_: ServerConfig, folder: Path) -> str:
    result = CliRunner().invoke(app, ["validate", str(folder / "serve.yaml")], env={"COLUMNS": "2000"})
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_cards_are_given_only_where_there_is_no_gpu(tmp_path: Path) -> None:
    expert = {**COMMAND, "device_bytes": 1024}
    with pytest.raises(ConfigError, match=r"^memory\.cards: divides RAM and cores of a machine without a GPU"):
        build_capacity(load(tmp_path, expert, vllm={"platform": "cuda"}), cards=list)


class FourCards(Cards):
    def visible(self) -> tuple[str, ...]:
        return tuple(f"GPU-{letter}" for letter in "abcd")

    def facts(self, uuid: str) -> CardFacts:
        return CardFacts(uuid, 24 * GIB, "one model")


def test_of_several_gpus_a_command_sees_those_of_its_seat(tmp_path: Path) -> None:
    words = (sys.executable, STAND_IN, "--name", "{name}", "--fault", "", "--socket", "{socket}")
    launch = CommandLaunch("pet", words, tmp_path / "logs", start_timeout_seconds=DEADLINE_SECONDS)

    async def visible(cards: Cards | None) -> object:
        engine = CommandEngine(launch, Footprint(1), cards=cards, width=2)
        await engine.start(seat=(2, 3))
        try:
            async with engine.send(EngineRequest("GET", "/environment", (), b"")) as response:
                told = json.loads(b"".join([chunk async for chunk in response.chunks()]))
            return told["environment"].get("CUDA_VISIBLE_DEVICES")
        finally:
            await engine.stop()

    assert asyncio.run(visible(FourCards())) == "GPU-c,GPU-d"
    assert asyncio.run(visible(None)) is None


def test_a_plan_for_a_wide_expert_says_what_lies_on_each_card(tmp_path: Path) -> None:
    load(tmp_path, WIDE, *SINGLES)
    out = tmp_path / "plan.json"
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "serve.yaml"), "--json", str(out)])
    assert result.exit_code == 0, result.output
    told = json.loads(out.read_text())
    assert told["fits"]
    wide = told["experts"][0]
    assert (wide["width"], wide["seats"], wide["device_awake"]) == (2, [[0, 1]], 15 * GIB)
    for machine, code in (("2x16GiB,host=99GiB", 0), ("16GiB,host=99GiB", 4)):
        planned = CliRunner().invoke(app, ["validate", str(tmp_path / "serve.yaml"), "--machine", machine])
        assert planned.exit_code == code, planned.output


def test_traffic_for_a_wide_expert_and_single_ones_is_simulated(tmp_path: Path) -> None:
    load(tmp_path, WIDE, *SINGLES)
    out = tmp_path / "figures.json"
    words = ["simulate", tmp_path / "serve.yaml", "--profile", "interleaved", "--requests", 60, "--json", out]
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert figures["policies"]["coe"]["wait_bound_kept"]
    assert figures["policies"]["coe"]["switches"] > 0
    assert not figures["bound"]["exact"]


def test_a_whole_server_serves_a_wide_expert_and_single_ones_in_turn(tmp_path: Path) -> None:
    with reading(tmp_path, lambda content, port: content) as reader:
        experts = [{**one, **QUICK} for one in (WIDE, *SINGLES)]
        load(tmp_path, *experts, http={"port": reader.port}, scheduling={"prefetch": False})
        reader.serve("coe serve serve.yaml")

        def ask(path: str, body: object = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            address = f"http://127.0.0.1:{reader.port}{path}"
            request = urllib.request.Request(address, data, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return json.loads(answer.read())

        def cards_after(name: str) -> dict[str, list[int]]:
            ask("/v1/completions", {"model": name, "prompt": "hi", "max_tokens": 4})
            there = ask("/admin/experts")
            return {one["name"]: [card["index"] for card in one["cards"]] for one in there if one["cards"]}

        cards_after("a")
        beside = cards_after("b")
        assert sorted(beside) == ["a", "b"]
        assert sorted(beside["a"] + beside["b"]) == [0, 1]
        assert cards_after("wide")["wide"] == [0, 1]
        again = cards_after("a")
        assert "wide" not in again
