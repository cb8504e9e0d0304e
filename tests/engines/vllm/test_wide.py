"""One real vLLM on two cards made of this machine's cores. The tests tell one story, in this order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coe_server.engines.cores import divided, here
from coe_server.engines.memory import private_bytes_by_process, process_tree
from coe_server.engines.vllm.engine import VllmEngine
from tests.engines.conftest import runs
from tests.engines.tiny_llama import tiny_llama
from tests.engines.vllm.real import KV_CACHE_BYTES, Real, started
from tests.patience import until

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
]  # an engine of two ranks needs 25 s to start on a quiet machine

CARDS = divided(here(), 2)
TEXTS = ("hello", "the lazy dog", "1 2 3")


@pytest.fixture(scope="module")
def real(vllm_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("wide")
    args = {"max_model_len": 512, "max_num_seqs": 8, "tensor_parallel_size": 2}
    with started(vllm_environment, folder, tiny_llama(folder / "model"), seat=(0, 1), args=args, cores=CARDS) as found:
        yield found


def reports(real: Real) -> list[dict[str, Any]]:
    return real.runner.run(real.engine.running().ask_ranks("memory_report"))


def private_of_ranks(real: Real) -> list[int]:
    held = private_bytes_by_process(real.keeper)
    return [held[report["pid"]] for report in reports(real)]


def shared_memory(pids: list[int]) -> set[str]:
    """What they have mapped of /dev/shm, as far as it has a name there."""
    lines = (line.split() for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return {line[5] for line in lines if len(line) == 6 and line[5].startswith("/dev/shm/")}


def test_each_rank_runs_on_the_cores_of_its_card(real: Real) -> None:
    assert [os.sched_getaffinity(report["pid"]) for report in reports(real)] == [set(cores) for cores in CARDS]
    every = {core for cores in CARDS for core in cores}
    assert all(os.sched_getaffinity(pid) <= every for pid in process_tree(real.keeper)[1:])


def test_each_rank_reports_its_own_bytes_and_has_an_image_of_its_own(real: Real) -> None:
    first, second = reports(real)
    awake = [int(one["weights_bytes"] + one["kv_cache_bytes"]) for one in (first, second)]
    assert first["pid"] != second["pid"]
    assert real.engine.footprint.device_awake == max(awake)
    assert VllmEngine(real.engine.launch).footprint.device_awake >= max(awake), "the estimate was not too small"
    assert min(one["kv_cache_bytes"] for one in (first, second)) >= 0.9 * KV_CACHE_BYTES
    images = [Path(image.path).read_bytes() for image in real.engine._memory.images]
    assert len(images) == 2
    assert images[0] != images[1]
    assert real.engine.footprint.host_image == sum(map(len, images))


def test_every_rank_gives_its_memory_back_and_wakes_with_equal_tokens(real: Real) -> None:
    before = [real.tokens(text) for text in TEXTS]
    for round_number in (1, 2):
        awake = private_of_ranks(real)
        real.runner.run(real.engine.sleep())
        asleep = private_of_ranks(real)
        real.runner.run(real.engine.wake())
        woken = private_of_ranks(real)
        for rank, report in enumerate(reports(real)):
            held = report["weights_bytes"] + report["kv_cache_bytes"]
            assert awake[rank] - asleep[rank] >= 0.9 * held, (round_number, rank)
            assert woken[rank] - asleep[rank] >= 0.9 * held, (round_number, rank)
            assert report["image_writes"] == 1, (round_number, rank)
        assert [real.tokens(text) for text in TEXTS] == before


def test_a_killed_rank_is_noticed_and_the_next_start_takes_the_weights_from_the_images(real: Real) -> None:
    before, pids = [real.tokens(text) for text in TEXTS], process_tree(real.keeper)
    shared = shared_memory(pids)
    os.kill(reports(real)[1]["pid"], signal.SIGKILL)
    reason = real.runner.run(asyncio.wait_for(real.engine.died(), 300))
    assert reason.startswith("engine 'french' ")
    until(lambda: not any(runs(pid) for pid in pids))  # the keeper ends the others once the first one has ended
    until(lambda: not any(map(os.path.exists, shared)))
    real.runner.run(real.engine.start(seat=(0, 1)))
    assert [(one["loaded_from_image"], one["image_writes"]) for one in reports(real)] == [(True, 0)] * 2
    assert [real.tokens(text) for text in TEXTS] == before


def test_nothing_is_left_of_it_when_it_stops(real: Real) -> None:
    pids = process_tree(real.keeper)
    shared = shared_memory(pids)
    real.runner.run(real.engine.stop())
    assert not any(runs(pid) for pid in pids)
    assert not any(map(os.path.exists, shared))
