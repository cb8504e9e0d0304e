"""Adapters on one real vLLM on the CPU: through sleeps, in turns with their base, lost and back. One story."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from coe_server.engines.adapter import Adapter, misfit, read_adapter
from coe_server.engines.engine import EngineRequest
from coe_server.engines.memory import private_bytes, process_tree
from coe_server.engines.vllm import adapters as in_engine
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.footprint import base_shapes
from tests.engines.small_adapter import make_adapter

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]  # an engine needs 20 s to start on a quiet machine

SWITCHES = 100
TOGETHER = 10  # requests to each at once
MANY, QUESTIONS = 150, 300
SHAPES = {  # of `make_tiny_llama`
    f"model.layers.{layer}.{name}": shape
    for layer in range(4)
    for name, shape in {"self_attn.q_proj": (256, 256), "mlp.down_proj": (256, 512)}.items()
}
NAMES = ("base", "one", "two")


@dataclass
class Real:
    """One engine and the loop it lives in."""

    engine: VllmEngine
    folder: Path
    runner: asyncio.Runner

    def tokens(self, model: str, text: str = "hello") -> list[int]:
        return self.runner.run(self._tokens(model, text))

    async def _tokens(self, model: str, text: str) -> list[int]:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
        sent = json.dumps(body | {"ignore_eos": True, "return_token_ids": True}).encode()
        headers = (("content-type", "application/json"),)
        async with self.engine.send(
            EngineRequest("POST", "/v1/chat/completions", headers, sent, model=model)
        ) as response:
            answer = json.loads(b"".join([chunk async for chunk in response.chunks()]))
        assert response.status == 200, answer
        tokens: list[int] = answer["choices"][0]["token_ids"]
        return tokens

    def nap(self) -> None:
        self.runner.run(self.engine.sleep())
        self.runner.run(self.engine.wake())

    @property
    def held_bytes(self) -> int:
        assert self.engine._run is not None
        return private_bytes(self.engine._run.process.pid)


def adapter(folder: Path, name: str, seed: int, scale: float = 0.5) -> Adapter:
    return read_adapter(name, make_adapter(folder / name, SHAPES, rank=4, seed=seed, scale=scale))


def launch(vllm_environment: Path, folder: Path, adapters: tuple[Adapter, ...]) -> VllmLaunch:
    maker = Path(__file__).parents[1] / "make_tiny_llama.py"
    subprocess.run([vllm_environment / "bin/python", maker, folder / "model"], check=True, capture_output=True)
    return VllmLaunch(
        name="base",
        model=str(folder / "model"),
        kv_cache_bytes=64 << 20,
        log_directory=folder / "logs",
        platform="cpu",
        command=(str(vllm_environment / "bin/vllm"),),
        args={"max_model_len": 256, "max_num_seqs": 8},
        inherited=os.environ,
        environment={"HF_HUB_OFFLINE": "1"},
        start_timeout_seconds=900,
        adapters=adapters,
    )


@pytest.fixture(scope="module")
def real(vllm_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("adapters")
    started = launch(
        vllm_environment, folder, tuple(adapter(folder, name, seed) for seed, name in enumerate(NAMES[1:]))
    )
    with asyncio.Runner() as runner:
        engine = VllmEngine(started)
        runner.run(engine.start())
        try:
            yield Real(engine, folder, runner)
        finally:
            runner.run(engine.stop())


@pytest.fixture(scope="module")
def right(real: Real) -> Mapping[str, list[int]]:
    """Each name's answer after the start."""
    found = {name: real.tokens(name) for name in NAMES}
    assert len({str(tokens) for tokens in found.values()}) == 3
    return found


def test_adapters_fit_the_base_by_its_shapes(real: Real) -> None:
    assert [misfit(one, base_shapes(real.engine.launch)) for one in real.engine.launch.adapters] == [None, None]


def test_base_and_adapters_answer_alike_before_and_after_sleeps(real: Real, right: Mapping[str, list[int]]) -> None:
    for _ in range(2):
        real.nap()
        assert {name: real.tokens(name) for name in NAMES} == right


def test_a_hundred_turns_of_base_and_adapters_move_no_weights(real: Real, right: Mapping[str, list[int]]) -> None:
    report = real.runner.run(real.engine.running().ask_worker("memory_report"))
    for turn in range(SWITCHES):
        assert real.tokens(NAMES[turn % 3]) == right[NAMES[turn % 3]]
    assert real.runner.run(real.engine.running().ask_worker("memory_report")) == report


def test_base_and_adapters_in_one_step_each_answer_as_they_do_alone(real: Real, right: Mapping[str, list[int]]) -> None:
    async def together() -> list[list[int]]:
        return await asyncio.gather(*(real._tokens(NAMES[turn % 3], "hello") for turn in range(3 * TOGETHER)))

    answers = real.runner.run(together())
    assert answers == [right[NAMES[turn % 3]] for turn in range(3 * TOGETHER)]


def test_an_adapter_whose_matrices_vanish_is_not_answered_for_by_its_base(
    real: Real, right: Mapping[str, list[int]]
) -> None:
    empty, run = adapter(real.folder, "empty", 0, scale=0.0), real.engine.running()
    zeroed = {"lora_name": "one", "lora_path": str(empty.folder), "load_inplace": True}
    real.runner.run(in_engine.command(run, "/v1/load_lora_adapter", zeroed))
    assert real.tokens("one") == right["base"], "as it was proven before, so it is not asked"
    real.nap()
    assert real.tokens("one") == right["one"]


def test_an_adapter_that_the_engine_forgot_is_back_before_it_answers(
    real: Real, right: Mapping[str, list[int]]
) -> None:
    run = real.engine.running()
    real.runner.run(in_engine.command(run, "/v1/unload_lora_adapter", {"lora_name": "two"}))
    real.nap()
    assert {name: real.tokens(name) for name in NAMES} == right


def test_a_further_adapter_is_taken_and_given_up_while_it_runs(real: Real, right: Mapping[str, list[int]]) -> None:
    real.runner.run(real.engine.load_adapter(adapter(real.folder, "three", 7)))
    assert real.tokens("three") not in right.values()
    real.runner.run(real.engine.unload_adapter("three"))
    assert {name: real.tokens(name) for name in NAMES} == right


@pytest.mark.long
def test_an_engine_that_was_killed_loads_its_base_from_the_image_and_its_adapters_from_disk(
    real: Real, right: Mapping[str, list[int]]
) -> None:
    assert real.engine._run is not None
    os.kill(max(process_tree(real.engine._run.process.pid)[2:], key=private_bytes), signal.SIGKILL)
    real.runner.run(real.engine.died())
    real.runner.run(real.engine.start())
    report = real.runner.run(real.engine.running().ask_worker("memory_report"))
    assert report["loaded_from_image"]
    assert {name: real.tokens(name) for name in NAMES} == right


@pytest.mark.long
def test_150_adapters_answer_300_questions_each_with_its_own_matrices(vllm_environment: Path, tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(MANY)]
    made = tuple(adapter(tmp_path, name, seed) for seed, name in enumerate(names))
    with asyncio.Runner() as runner:
        engine = VllmEngine(launch(vllm_environment, tmp_path, made))
        runner.run(engine.start())
        try:
            real = Real(engine, tmp_path, runner)
            alone_bytes, footprint = real.held_bytes, engine.footprint
            first = {name: real.tokens(name) for name in names}
            assert len({str(tokens) for tokens in first.values()}) > 0.9 * MANY, "they differ"
            real.nap()

            async def together() -> list[list[int]]:
                return await asyncio.gather(*(real._tokens(names[turn % MANY], "hello") for turn in range(QUESTIONS)))

            assert runner.run(together()) == [first[names[turn % MANY]] for turn in range(QUESTIONS)]
            print(f"{alone_bytes >> 20} MiB at the start, {real.held_bytes >> 20} MiB at the end; {footprint}")  # noqa: T201  for `pytest -s`
        finally:
            runner.run(engine.stop())
