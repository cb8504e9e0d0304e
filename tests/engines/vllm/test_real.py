"""The driver and the sleeping worker with one real vLLM on the CPU. The tests tell one story, in this order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coe_server.engines.engine import EngineRequest
from coe_server.engines.memory import private_bytes, process_tree
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.footprint import model_bytes
from coe_server.errors import EngineDied, EngineError
from coe_server.http.logprobs import TakenFromBody, TakenFromEvents
from tests.engines.conftest import eventually, run_directory_of, runs
from tests.engines.tiny_llama import tiny_llama
from tests.engines.vllm.real import KV_CACHE_BYTES, Real, started

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]  # an engine needs 20 s to start on a quiet machine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def real(vllm_environment: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with started(vllm_environment, tmp_path_factory.mktemp("real"), model) as found:
        yield found


def test_a_started_engine_answers_under_the_experts_name(real: Real) -> None:
    answer = json.loads(b"".join(real.ask("hello")))
    assert answer["model"] == "french"
    assert answer["usage"]["completion_tokens"] == 24
    assert real.tokens("hello") != real.tokens("a quick brown dog"), "its answers depend on the question"


def test_a_stream_arrives_in_pieces_and_ends_with_done(real: Real) -> None:
    chunks = real.ask("hello", stream=True, max_tokens=400)  # so many that a client kept waiting still sees pieces
    assert len(chunks) > 4
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_without_its_log_probabilities_an_answer_is_the_one_that_was_not_asked_for_them(
    real: Real, api: str, stream: bool
) -> None:
    ask = real.ask if api == "chat" else real.completed
    asked: dict[str, Any] = {"logprobs": True if api == "chat" else 1}
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    plain = b"".join(ask("hello", **options))
    taken = TakenFromEvents(kept=False) if stream else TakenFromBody(kept=False)
    judged = b"".join([*map(taken.hear, ask("hello", **options, **asked)), taken.end()])
    assert len(taken.found) == 24
    assert all(one <= 0.0 for one in taken.found)
    assert _comparable(judged) == _comparable(plain)


def _comparable(raw: bytes) -> tuple[str, list[str]]:
    """The text of an answer, and each form of its events once: how many tokens an event has varies with vLLM itself."""
    parts = [json.loads(line) for line in raw.decode().replace("data: ", "").splitlines() if line.startswith("{")]
    text, forms = "", dict[str, None]()
    for part in parts:
        part |= {"id": "", "created": 0}
        for choice in part["choices"]:
            told = choice.get("message") or choice.get("delta") or choice
            field = "text" if "text" in told else "content"
            text += told.get(field) or ""
            told[field] = ""
        forms[json.dumps(part)] = None
    return text, list(forms)


def test_a_stream_that_is_left_is_aborted_in_the_engine(real: Real) -> None:
    async def leave() -> None:
        options = {"stream": True, "max_tokens": 400}
        body = {"model": "french", "messages": [{"role": "user", "content": "hello"}], "ignore_eos": True} | options
        headers = (("content-type", "application/json"),)
        request = EngineRequest("POST", "/v1/chat/completions", headers, json.dumps(body).encode())
        async with real.engine.send(request) as response:
            await anext(response.chunks())

    real.runner.run(leave())
    assert eventually(lambda: running_requests(real) == 0)


def running_requests(real: Real) -> float:
    async def metrics() -> bytes:
        async with real.engine.send(EngineRequest("GET", "/metrics", (), b"")) as response:
            return b"".join([chunk async for chunk in response.chunks()])

    lines = real.runner.run(metrics()).decode().splitlines()
    (line,) = (line for line in lines if line.startswith("vllm:num_requests_running{"))
    return float(line.rsplit(" ", 1)[1])


def test_every_port_that_it_listens_on_is_on_the_loopback_address(real: Real) -> None:
    ports = listening(process_tree(real.keeper))
    assert set(ports) <= {"0100007F", "00000000000000000000000001000000"}, ports


def listening(pids: list[int]) -> list[str]:
    """The addresses, as the kernel writes them, on which processes listen."""
    sockets = set()
    for one in (file for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            sockets.add(os.readlink(one))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def test_its_footprint_is_exact_and_the_estimate_was_not_too_small(real: Real, model: Path) -> None:
    report = real.report()
    footprint, file_bytes = real.engine.footprint, model_bytes(str(model))
    assert file_bytes is not None
    assert footprint.device_awake == report["weights_bytes"] + report["kv_cache_bytes"]
    assert (
        report["weights_bytes"] <= footprint.host_image == report["image_bytes"] < report["weights_bytes"] + (1 << 20)
    )
    assert report["weights_bytes"] >= 0.95 * file_bytes, "no weight lives outside what can sleep"
    assert 0.9 * KV_CACHE_BYTES <= report["kv_cache_bytes"] <= KV_CACHE_BYTES
    assert VllmEngine(real.engine.launch).footprint.device_awake >= footprint.device_awake
    assert footprint.host_process > 100 << 20, "a vLLM process is never small"


def test_sleep_frees_weights_and_kv_cache_wake_restores_them_and_no_sleep_copies(real: Real) -> None:
    before = [real.tokens(text) for text in ("hello", "the lazy dog", "1 2 3")]
    for round_number in (1, 2, 3):
        awake_bytes = private_bytes(real.core)
        real.runner.run(real.engine.sleep())
        asleep_bytes = private_bytes(real.core)
        assert awake_bytes - asleep_bytes >= 0.9 * real.engine.footprint.device_awake
        real.runner.run(real.engine.wake())
        assert private_bytes(real.core) - asleep_bytes >= 0.9 * real.engine.footprint.device_awake
        report = real.report()
        assert report["image_writes"] == 1, round_number
        assert [real.tokens(text) for text in ("hello", "the lazy dog", "1 2 3")] == before


def test_linear_layers_are_packed_for_speed_and_sleep_all_the_same(real: Real) -> None:
    report = real.report()
    four_in_each = 4 * 4  # of four layers; the output layer is tied to the embedding
    assert report["packed_layers"] == (four_in_each if multiplies_16_bits() else 0)


def multiplies_16_bits() -> bool:
    """oneDNN packs 16-bit matrices for processors that have these instructions; on others layers stay plain."""
    (flags,) = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")}
    return "avx_ne_convert" in flags.split() or {"avx512bw", "avx512vl", "avx512dq"} <= set(flags.split())


def test_the_image_holds_the_weights_and_answers_come_from_it(real: Real, model: Path) -> None:
    """The proof that wake really reads the image: its bytes contain the model's embedding, word for word."""
    (held,) = real.engine._memory.images
    with open(held.path, "rb") as file:
        image = file.read()
    weights = (model / "model.safetensors").read_bytes()
    header_bytes = int.from_bytes(weights[:8], "little")
    first, last = json.loads(weights[8 : 8 + header_bytes])["model.embed_tokens.weight"]["data_offsets"]
    start = 8 + header_bytes
    assert weights[start + first : start + last] in image


def test_level_2_is_refused_and_the_engine_stays_well(real: Real) -> None:
    run = real.engine._run
    assert run is not None
    before = real.tokens("hello")
    with pytest.raises(EngineError, match="500"):
        real.runner.run(run.http.ask("POST", "/sleep?level=2&mode=wait", 60))
    real.runner.run(real.engine.wake())
    assert real.tokens("hello") == before


def test_a_killed_engine_core_is_noticed_and_the_next_start_takes_its_weights_from_the_image(real: Real) -> None:
    before, pids, folder = real.tokens("hello"), process_tree(real.keeper), run_directory_of(real.keeper)
    os.kill(real.core, signal.SIGKILL)
    reason = real.runner.run(asyncio.wait_for(real.engine.died(), 300))
    assert reason.startswith("engine 'french' ended with status ")
    assert not any(runs(pid) for pid in pids)
    assert not folder.exists()
    with pytest.raises(EngineDied):
        real.tokens("hello")
    real.runner.run(real.engine.start())
    report = real.report()
    assert (report["loaded_from_image"], report["image_writes"]) == (True, 0)
    assert real.tokens("hello") == before
    real.runner.run(real.engine.sleep())
    real.runner.run(real.engine.wake())
    assert real.tokens("hello") == before


def test_without_its_keeper_the_core_still_dies_with_the_api_server(real: Real) -> None:
    """What is left if server and keeper are killed at the same instant."""
    keeper, core, pids = real.keeper, real.core, process_tree(real.keeper)
    folder = run_directory_of(keeper)
    os.kill(keeper, signal.SIGSTOP)
    os.kill(pids[1], signal.SIGKILL)
    assert eventually(lambda: not runs(core))
    os.kill(keeper, signal.SIGCONT)
    reason = real.runner.run(asyncio.wait_for(real.engine.died(), 300))
    assert reason.startswith("engine 'french' was killed by signal 9")
    assert not any(runs(pid) for pid in pids)
    assert not folder.exists()
