"""An engine of ours with its real driver code, against the stand-in for vLLM on pretend cards."""

import asyncio
import importlib.util
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coe_server.cache.expert_cache import ExpertCache, Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.cards import Cards as Driver
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.errors import EngineError, EngineStartFailed
from tests.cuda.cards import DRIVER_BYTES, GIB, MIB, VARIABLE, Cards
from tests.cuda.stand_in import ACTIVATIONS_LARGE, ACTIVATIONS_SMALL, CONTEXT, GRAPH, NCCL
from tests.patience import PATIENCE_SECONDS, until

HERE = Path(__file__).parent
KV = 2 * GIB
FILES = round(5.2 * GIB)
GRAPHS = 7 * GRAPH  # of 16 sequences


class Machine:
    """Pretend cards, the driver's library that reads them, and launches of engines there."""

    def __init__(self, folder, cards, vllm_rules, tells_processes):
        spec = importlib.util.spec_from_file_location("pretend_nvml", HERE / "driver/pynvml.py")
        self.nvml = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = self.nvml
        spec.loader.exec_module(self.nvml)
        self.cards = cards
        self.driver = Driver(self.nvml, {}, tells_processes)
        self._folder, self._rules = folder, vllm_rules

    def launch(self, name, model, fault="", load_seconds=0.1, **more):
        settings = {
            "name": name,
            "model": str(model),
            "kv_cache_bytes": KV,
            "log_directory": self._folder / "logs",
            "platform": "cuda",
            "command": (sys.executable, str(HERE / "stand_in.py")),
            "inherited": {key: os.environ[key] for key in ("PATH", VARIABLE)},
            "environment": self._rules | {"PRETEND_FAULT": fault, "PRETEND_LOAD_SECONDS": str(load_seconds)},
            "start_timeout_seconds": PATIENCE_SECONDS,
            "max_concurrency": 16,
        }
        return VllmLaunch(**settings | more)

    def engine(self, name, model, **more):
        return VllmEngine(self.launch(name, model, **more), self.driver)


@pytest.fixture(params=[True, False], ids=["processes told", "in a container"])
def machine(request, tmp_path, vllm_rules, monkeypatch):
    """Makes a machine of cards of these sizes."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cards.json"))

    def make(*totals):
        return Machine(tmp_path, Cards.create(tmp_path / "cards.json", totals), vllm_rules, request.param)

    return make


def run(story):
    return asyncio.run(asyncio.wait_for(story, PATIENCE_SECONDS))


def awake_bytes(files=FILES, activations=ACTIVATIONS_SMALL):
    return CONTEXT + files + KV + activations + GRAPHS


def test_three_experts_start_beside_each_other_on_one_small_card(machine, make_model):
    here = machine(24 * GIB)

    async def story():
        engines = [here.engine(f"e{number}", make_model(f"m{number}")) for number in range(3)]
        experts = [Expert(f"e{number}", engine, preload=Tier.HOST) for number, engine in enumerate(engines)]
        capacity = Bytes(23 * GIB, 64 * GIB)
        cache = ExpertCache(experts, capacity, Limits(), one_move_at_a_time=False)
        task = asyncio.create_task(cache.run())
        try:
            await cache.ready.wait()
            assert [slot.tier for slot in cache.slots.values()] == [Tier.HOST] * 3
            assert here.cards.reading(0).used == DRIVER_BYTES + 3 * CONTEXT
            for name in ("e0", "e1"):
                with await cache.lease(name):
                    pass
            assert [slot.tier for slot in cache.slots.values()] == [Tier.DEVICE, Tier.DEVICE, Tier.HOST]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert here.cards.held() == {}

    run(story())


def test_six_sleepers_and_a_large_expert_live_together_on_a_large_card(machine, make_model):
    here = machine(141 * GIB)

    async def story():
        sleepers = [here.engine(f"s{number}", make_model(f"m{number}")) for number in range(6)]
        large = here.engine("large", make_model("large", 20 * GIB))
        try:
            for engine in sleepers:
                await engine.start()
                await engine.sleep()
            await large.start()
            await sleepers[0].wake()
            assert large.footprint.device_awake == awake_bytes(20 * GIB, ACTIVATIONS_LARGE)
        finally:
            await asyncio.gather(*(engine.stop() for engine in (*sleepers, large)))

    run(story())


def test_the_footprint_is_what_the_engine_holds_after_its_longest_step_and_asleep(machine, make_model):
    here = machine(24 * GIB)

    async def story():
        engine = here.engine("e", make_model("m"))
        estimate = engine.footprint
        try:
            await engine.start()
            told = engine.footprint
            assert told.device_awake == awake_bytes() < estimate.device_awake
            assert told.device_asleep == CONTEXT
            assert told.host_image == FILES + GRAPHS, "pinned in blocks of their own size"
            await engine.sleep()
            assert here.cards.reading(0).used == DRIVER_BYTES + CONTEXT
        finally:
            await engine.stop()
        assert here.cards.held() == {}

    run(story())


def test_a_cache_that_grew_in_service_is_no_residue(machine, make_model):
    here = machine(24 * GIB)

    async def story():
        engine = here.engine("e", make_model("m"), fault="cache grows in service")
        try:
            await engine.start()
            for _ in range(4):
                await engine.running().http.ask(
                    "POST", "/v1/completions", 30, {"prompt": "x", "model": "e", "max_tokens": 1}
                )
            await engine.sleep()
            assert engine.footprint.device_asleep == CONTEXT
        finally:
            await engine.stop()

    run(story())


@pytest.mark.parametrize("others", [DRIVER_BYTES, 3 * GIB], ids=["dies", "takes memory"])
def test_a_neighbour_that_changes_during_a_start_does_not_reach_the_footprint(machine, make_model, others):
    here = machine(48 * GIB)

    async def story():
        here.cards.neighbour(0, DRIVER_BYTES + GIB)
        engine = here.engine("e", make_model("m"), load_seconds=1)
        try:
            starting = asyncio.create_task(engine.start())
            await asyncio.to_thread(until, lambda: "context" in here.cards.held())
            here.cards.neighbour(0, others)
            await starting
            exact = here.driver._tells_processes
            slack = 0 if exact else 2 * GIB  # without figures of processes a context is at most its estimate
            assert awake_bytes() - 200 * MIB <= engine.footprint.device_awake <= awake_bytes() + slack
        finally:
            await engine.stop()

    run(story())


def test_a_stop_beside_a_later_neighbour_warns_of_nothing(machine, make_model, caplog):
    here = machine(48 * GIB)

    async def story():
        engine, later = here.engine("e", make_model("m")), here.engine("later", make_model("n"))
        try:
            await engine.start()
            await later.start()
            await engine.stop()
        finally:
            await asyncio.gather(engine.stop(), later.stop())

    with caplog.at_level(logging.WARNING):
        run(story())
    assert caplog.messages == []


def test_a_sleep_beside_a_start_is_not_taken_for_one_that_frees_nothing(machine, make_model):
    here = machine(48 * GIB)

    async def story():
        engine, later = here.engine("e", make_model("m")), here.engine("later", make_model("n"), load_seconds=0.5)
        try:
            await engine.start()
            starting = asyncio.create_task(later.start())
            while not starting.done():
                await engine.sleep()
                await engine.wake()
            await starting
            assert engine.footprint.device_asleep == CONTEXT
            slack = 0 if here.driver._tells_processes else 2 * GIB
            assert CONTEXT <= later.footprint.device_asleep <= CONTEXT + slack
        finally:
            await asyncio.gather(engine.stop(), later.stop())

    run(story())


def test_a_sleep_that_frees_nothing_ends_the_start(machine, make_model):
    here = machine(24 * GIB)
    engine = here.engine("e", make_model("m"), fault="sleep frees nothing")
    with pytest.raises(EngineStartFailed, match=r"sleeps but freed 0 bytes of GPU-00000000"):
        run(engine.start())
    assert here.cards.held() == {}


def test_a_release_that_shows_late_is_waited_for(machine, make_model):
    here = machine(24 * GIB)

    async def story():
        engine = here.engine("e", make_model("m"), fault="slow release")
        try:
            await engine.start()
            await engine.sleep()
            assert here.cards.reading(0).used < DRIVER_BYTES + CONTEXT + 0.1 * awake_bytes()
        finally:
            await engine.stop()

    run(story())


def test_an_engine_that_vllm_calls_failed_as_it_slept_is_not_kept(machine, make_model):
    here = machine(24 * GIB)

    async def story():
        launch = here.launch("e", make_model("m"))
        engine = VllmEngine(launch, here.driver)
        failing = VllmEngine(
            replace(launch, environment=dict(launch.environment) | {"PRETEND_FAULT": "takes as it sleeps"}), here.driver
        )
        with pytest.raises(EngineStartFailed, match="Memory usage increased after sleeping"):
            await failing.start()
        assert here.cards.held() == {}
        here.cards.neighbour(0, DRIVER_BYTES)
        try:
            await engine.start()
        finally:
            await engine.stop()

    run(story())


def test_weights_that_are_wrong_after_a_wake_end_the_start(machine, make_model):
    engine = machine(24 * GIB).engine("e", make_model("m"), fault="garbage after wake")
    with pytest.raises(EngineStartFailed, match="answers its canary wrongly"):
        run(engine.start())


def test_the_longest_request_is_what_the_cache_holds(machine, make_model):
    async def story():
        engine = machine(48 * GIB).engine("e", make_model("m", max_position_embeddings=10**6))
        assert engine.longest_tokens is None
        try:
            await engine.start()
            assert engine.longest_tokens == KV // (2 * 28 * 4 * 128 * 2)
        finally:
            await engine.stop()

    run(story())


def test_ranks_lie_on_their_seat_and_the_largest_counts(machine, make_model):
    here = machine(*[24 * GIB] * 4)

    async def story():
        engine = here.engine("wide", make_model("m", 20 * GIB), args={"tensor_parallel_size": 2})
        try:
            await engine.start(seat=(2, 3))
            assert [bool(here.cards.held(card=card)) for card in range(4)] == [False, False, True, True]
            assert engine.footprint.device_awake == awake_bytes(round(10 * GIB * 1.02)) + NCCL
            assert engine.footprint.device_asleep == CONTEXT + NCCL
            await engine.sleep()
            await engine.wake()
        finally:
            await engine.stop()
        assert here.cards.held() == {}

    run(story())


def test_copies_are_measured_and_asked_each(machine, make_model):
    here = machine(*[24 * GIB] * 2)

    async def story():
        engine = here.engine("two", make_model("m"), args={"data_parallel_size": 2})
        try:
            await engine.start()
            assert engine.footprint.device_awake == awake_bytes()
            assert [here.cards.held(card=card)["weights"] for card in range(2)] == [FILES, FILES]
            assert engine.footprint.host_image == 2 * (FILES + GRAPHS)
            assert sorted(engine._memory.first_answers._first) == [0, 1]
        finally:
            await engine.stop()

    run(story())


def test_a_rank_that_lacks_room_leaves_nothing(machine, make_model):
    here = machine(*[13 * GIB] * 2)
    engine = here.engine("e", make_model("m", 17 * GIB), args={"tensor_parallel_size": 2}, fault="a rank lacks room")
    with pytest.raises(EngineStartFailed, match="out of memory"):
        run(engine.start())
    until(lambda: here.cards.held() == {})


def test_more_cards_than_there_are_is_a_sentence(machine, make_model):
    engine = machine(24 * GIB).engine("e", make_model("m"), args={"tensor_parallel_size": 2})
    with pytest.raises(EngineStartFailed, match="needs 2 cards; 1 are visible"):
        run(engine.start())


def test_the_drivers_library_is_initialised_once_and_never_read_on_the_loop(machine, make_model):
    here = machine(24 * GIB)
    loop_threads = set()

    async def story():
        loop_threads.add(asyncio.get_running_loop())
        engine = here.engine("e", make_model("m"))
        real = here.nvml.nvmlDeviceGetMemoryInfo

        def watched(handle, version=None):
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return real(handle)

        here.nvml.nvmlDeviceGetMemoryInfo = watched
        try:
            await engine.start()
            await engine.sleep()
        finally:
            await engine.stop()

    run(story())
    assert here.nvml.calls["nvmlInit"] == 1


def test_a_lost_card_is_an_error_of_the_engine(machine, make_model):
    here = machine(24 * GIB)
    here.cards.lose(0)
    engine = here.engine("e", make_model("m"))
    with pytest.raises(EngineError, match="GPU is lost"):
        run(engine.start())
