"""The demo's adapters on one real vLLM on the CPU: through sleeps, in turns with their base, lost, back. One story."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coe_server.engines.adapter import Adapter, misfit, read_adapter
from coe_server.engines.memory import private_bytes
from coe_server.engines.tensor_headers import shapes_in
from coe_server.engines.vllm import adapters as in_engine
from coe_server.engines.vllm.footprint import base_shapes
from coe_server.errors import EngineError
from tests.engines.small_adapter import make_adapter
from tests.engines.vllm.real import Real, started

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]  # an engine needs 20 s to start on a quiet machine

SWITCHES = 100
TOGETHER = 10  # requests to each at once
MANY, QUESTIONS = 150, 300
DEMO = Path(__file__).parents[3] / "demo"
BASE = DEMO / "experts/generalist"  # a model of the repository: a new one would first load torch
SHAPES = {
    name.removesuffix(".weight"): (shape[0], shape[1])
    for name, shape in shapes_in([BASE / "model.safetensors"]).items()
    if name.endswith(("q_proj.weight", "down_proj.weight"))
}
TOPICS = ("sql", "units")
NAMES = ("generalist", *TOPICS)
QUESTION = "Count the rows of users in SQL"
EXAM = 20  # questions to each at once


@dataclass
class WithAdapters(Real):
    """Asked by name: the base, or an adapter."""

    folder: Path

    def said(self, name: str) -> list[int]:
        return self.runner.run(self.says(name))

    async def says(self, name: str) -> list[int]:
        return await self.answer_tokens(QUESTION, model=name, max_tokens=8)

    def nap(self) -> None:
        self.runner.run(self.engine.sleep())
        self.runner.run(self.engine.wake())


def of_demo(topic: str) -> Adapter:
    return read_adapter(topic, DEMO / "adapters" / topic)


def adapter(folder: Path, name: str, seed: int, scale: float = 0.5) -> Adapter:
    return read_adapter(name, make_adapter(folder / name, SHAPES, rank=4, seed=seed, scale=scale))


@contextmanager
def with_adapters(vllm_environment: Path, folder: Path, adapters: tuple[Adapter, ...]) -> Iterator[WithAdapters]:
    args = {"max_model_len": 256, "max_num_seqs": 8}
    settings = {"name": "generalist", "kv_cache_bytes": 64 << 20, "args": args, "adapters": adapters}
    with started(vllm_environment, folder, BASE, **settings) as found:
        yield WithAdapters(found.engine, found.runner, folder)


@pytest.fixture(scope="module")
def real(vllm_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithAdapters]:
    with with_adapters(vllm_environment, tmp_path_factory.mktemp("adapters"), tuple(map(of_demo, TOPICS))) as found:
        yield found


@pytest.fixture(scope="module")
def right(real: WithAdapters) -> Mapping[str, list[int]]:
    """Each name's answer after the start."""
    found = {name: real.said(name) for name in NAMES}
    assert len({str(tokens) for tokens in found.values()}) == 3
    return found


def test_adapters_fit_the_base_by_its_shapes(real: WithAdapters) -> None:
    assert [misfit(one, base_shapes(real.engine.launch)) for one in real.engine.launch.adapters] == [None, None]


def test_base_and_adapters_answer_alike_before_and_after_sleeps(
    real: WithAdapters, right: Mapping[str, list[int]]
) -> None:
    for _ in range(2):
        real.nap()
        assert {name: real.said(name) for name in NAMES} == right


def test_a_hundred_turns_of_base_and_adapters_move_no_weights(
    real: WithAdapters, right: Mapping[str, list[int]]
) -> None:
    report = real.report()
    for turn in range(SWITCHES):
        assert real.said(NAMES[turn % 3]) == right[NAMES[turn % 3]]
    assert real.report() == report


def test_base_and_adapters_in_one_step_each_answer_as_they_do_alone(
    real: WithAdapters, right: Mapping[str, list[int]]
) -> None:
    async def together() -> list[list[int]]:
        return await asyncio.gather(*(real.says(NAMES[turn % 3]) for turn in range(3 * TOGETHER)))

    answers = real.runner.run(together())
    assert answers == [right[NAMES[turn % 3]] for turn in range(3 * TOGETHER)]


def test_adapters_asked_together_are_right_as_often_as_was_recorded_of_them(real: WithAdapters) -> None:
    """Most rounding that differs in a batch changes no answer; matrices of another adapter would."""
    recorded = {
        (row["expert"], row["prompt_id"]): row["score"]
        for name in ("outcomes", "adapters.outcomes")
        for row in rows(f"held_out.{name}.jsonl")
    }
    asked = [row for row in rows("held_out.prompts.jsonl") if row["category"] in TOPICS]
    questions = {
        name: [row for row in asked if row["category"] == (name if name in TOPICS else "sql")] for name in NAMES
    }

    async def is_right(name: str, row: dict[str, Any]) -> bool:
        answer = await real.choice(row["prompt"], model=name, max_tokens=48, ignore_eos=False)
        return bool(answer["message"]["content"].strip() == row["answer"])

    async def exam() -> dict[str, int]:
        papers = {name: [is_right(name, row) for row in questions[name][:EXAM]] for name in NAMES}
        marks = await asyncio.gather(*(asyncio.gather(*paper) for paper in papers.values()))
        return dict(zip(papers, map(sum, marks), strict=True))

    for name, count in real.runner.run(exam()).items():
        expert = name if name not in TOPICS else f"generalist-{name}"
        alone = sum(recorded[expert, row["prompt_id"]] for row in questions[name][:EXAM])
        assert abs(count - alone) <= 1, name


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / "data" / name).read_text().splitlines()]


def test_an_adapter_whose_matrices_vanish_is_not_answered_for_by_its_base(
    real: WithAdapters, right: Mapping[str, list[int]]
) -> None:
    empty, run = adapter(real.folder, "empty", 0, scale=0.0), real.engine.running()
    zeroed = {"lora_name": "sql", "lora_path": str(empty.folder), "load_inplace": True}
    real.runner.run(in_engine.command(run, "/v1/load_lora_adapter", zeroed))
    assert real.said("sql") == right["generalist"], "as it was proven before, so it is not asked"
    real.nap()
    assert real.said("sql") == right["sql"]


def test_an_adapter_that_the_engine_forgot_is_back_before_it_answers(
    real: WithAdapters, right: Mapping[str, list[int]]
) -> None:
    run = real.engine.running()
    real.runner.run(in_engine.command(run, "/v1/unload_lora_adapter", {"lora_name": "units"}))
    real.nap()
    assert {name: real.said(name) for name in NAMES} == right


def test_a_further_adapter_is_taken_and_given_up_while_it_runs(
    real: WithAdapters, right: Mapping[str, list[int]]
) -> None:
    first = real.engine.launch.adapters
    real.engine.take_adapters((*first, adapter(real.folder, "further", 7)))
    assert real.said("further") not in right.values()
    real.nap()
    assert real.said("further") not in right.values()
    real.engine.take_adapters(first)
    assert {name: real.said(name) for name in NAMES} == right
    with pytest.raises(EngineError, match="404"):
        real.runner.run(
            real.engine.running().http.ask("POST", "/v1/completions", 60, {"model": "further", "prompt": "hello"})
        )


@pytest.mark.long
def test_an_engine_that_was_killed_loads_its_base_from_the_image_and_its_adapters_from_disk(
    real: WithAdapters, right: Mapping[str, list[int]]
) -> None:
    os.kill(real.core, signal.SIGKILL)
    real.runner.run(real.engine.died())
    real.runner.run(real.engine.start())
    report = real.report()
    assert report["loaded_from_image"]
    assert {name: real.said(name) for name in NAMES} == right


@pytest.mark.long
def test_150_adapters_answer_300_questions_each_with_its_own_matrices(vllm_environment: Path, tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(MANY)]
    made = tuple(adapter(tmp_path, name, seed) for seed, name in enumerate(names))
    with with_adapters(vllm_environment, tmp_path, made) as real:
        alone_bytes, footprint = private_bytes(real.keeper), real.engine.footprint
        first = {name: real.said(name) for name in names}
        assert len({str(tokens) for tokens in first.values()}) > 0.9 * MANY, "they differ"
        real.nap()

        async def together() -> list[list[int]]:
            return await asyncio.gather(*(real.says(names[turn % MANY]) for turn in range(QUESTIONS)))

        assert real.runner.run(together()) == [first[names[turn % MANY]] for turn in range(QUESTIONS)]
        held_bytes = private_bytes(real.keeper)
        print(f"{alone_bytes >> 20} MiB at the start, {held_bytes >> 20} MiB at the end; {footprint}")  # noqa: T201  for `pytest -s`
