"""How fast one real expert moves between the tiers, compared with the memory bandwidth of this machine. On a CPU.

    python benchmarks/tiers.py [--megabytes 317] [--rounds 5] [--answer-tokens 64]

Starts vLLM with a model of random weights. Each round then does: sleep, reference copies in a separate process (same
bytes, same number of threads), wake, the same questions again. Prints one table and keeps it in docs/benchmarks.md.
Exit code 1 if an answer changed.

The first use of memory can be slow on a virtual machine: 5 s for 1 GB, and 0.3 s the second time. So the memory needed
is touched once before any measurement. Without matrix instructions, answers of a large model take long:
`--answer-tokens` makes them shorter, and all are still compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from coe_server.engines.engine import EngineRequest
from coe_server.engines.memory import private_bytes, process_tree
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.engine import VllmEngine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.document import document
from benchmarks.mixed_trace import processor

THREADS = 1  # of an engine, see `engines/vllm/command.py`
KV_CACHE_BYTES = 128 << 20
MEMORY_FACTOR = 4  # copies of the weights: loaded, packed, in the image, and the reference's
QUESTIONS = ("hello", "the quick brown fox", "1 2 3 4 5 6 7 8", "What is a lease?")
IN_VLLM = Path(__file__).with_name("in_vllm")


@dataclass
class Measured:
    """Seconds of each kind of move, one entry per round, and the other measurements."""

    weights_bytes: int
    image_bytes: int
    cold_start: float
    load: float
    decode: float
    answer_tokens: int
    sleep: list[float] = field(default_factory=list)
    wake: list[float] = field(default_factory=list)
    worker_wake: list[float] = field(default_factory=list)
    worker_copy: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    awake_bytes: list[int] = field(default_factory=list)
    asleep_bytes: list[int] = field(default_factory=list)
    restart: float = 0.0
    reload: float = 0.0
    answers_equal: bool = True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=317, help="size of the model (default 317)")
    parser.add_argument("--rounds", type=int, default=5, help="sleeps and wakes after the first (default 5)")
    parser.add_argument(
        "--answer-tokens", type=int, default=64, help="length of each of the four answers of a round (default 64)"
    )
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm"), help="vLLM's environment (default .venv-vllm)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="coe-tiers-") as folder:
        model = Path(folder) / "model"
        print(f"making a model of {asked.megabytes} MB", flush=True)
        maker = (asked.vllm / "bin/python", IN_VLLM / "random_llama.py", model, str(asked.megabytes))
        subprocess.run(maker, check=True, capture_output=True)
        touch_memory(MEMORY_FACTOR * (asked.megabytes * 10**6 + KV_CACHE_BYTES))
        measured = asyncio.run(measure(model, asked.vllm.absolute(), Path(folder), asked.rounds, asked.answer_tokens))
    table = table_of(measured)
    print(table)
    part = f"tiers {asked.megabytes} MB, {processor()}"
    document(part, f"## Tiers: one expert of {asked.megabytes} MB, {processor()}\n\n{table}")
    return 0 if measured.answers_equal else 1


def touch_memory(size_bytes: int) -> None:
    """Allocate this much memory and write to every page, then free it."""
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for offset in range(0, size_bytes, mmap.PAGESIZE):
            memory[offset] = 1


async def measure(model: Path, vllm: Path, folder: Path, rounds: int, answer_tokens: int) -> Measured:
    """Start the engine, measure its moves and a restart; the engine is stopped in any case."""
    engine = VllmEngine(
        VllmLaunch(
            name="expert",
            inherited=os.environ,
            model=str(model),
            kv_cache_bytes=KV_CACHE_BYTES,
            log_directory=folder,
            platform="cpu",
            command=(str(vllm / "bin/vllm"),),
            args={"max_model_len": 1024, "max_num_seqs": 8},
            environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS)},
        )
    )
    try:
        print("starting vLLM", flush=True)
        cold_start = await timed(engine.start)
        await answers(engine, answer_tokens)  # warm-up: the first answers are slower
        before, decode = await answers(engine, answer_tokens)
        report = await engine.running().ask_worker("memory_report")
        sizes = int(report["weights_bytes"]), int(report["image_bytes"])
        measured = Measured(*sizes, cold_start, report["load_seconds"], decode, answer_tokens)
        await alternate(engine, vllm, measured, before, rounds)
        await restart(engine, measured, before)
    finally:
        await engine.stop()
    return measured


async def alternate(engine: VllmEngine, vllm: Path, measured: Measured, before: list[list[int]], rounds: int) -> None:
    """One round more than requested, because the table shows the first sleep and wake separately."""
    (image,) = engine._memory.images
    reference = await asyncio.create_subprocess_exec(
        *(vllm / "bin/python", IN_VLLM / "copy_reference.py", image.path, str(measured.weights_bytes)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": str(THREADS)},
    )
    await copies_of(reference)  # warm-up: the first copies are slower
    try:
        for number in range(rounds + 1):
            print(f"round {number + 1} of {rounds + 1}", flush=True)
            measured.awake_bytes.append(held_bytes(engine))
            measured.sleep.append(await timed(engine.sleep))
            measured.asleep_bytes.append(held_bytes(engine))
            copies = await copies_of(reference)
            assert copies["threads"] == THREADS, "the reference runs with the engine's threads"
            measured.reference.append(min(copies["torch"], copies["memcpy"]))
            measured.warm.append(copies["warm"])
            measured.wake.append(await timed(engine.wake))
            report = await engine.running().ask_worker("memory_report")
            measured.worker_wake.append(report["last_wake_seconds"])
            measured.worker_copy.append(report["last_copy_seconds"])
            measured.answers_equal &= (await answers(engine, measured.answer_tokens))[0] == before
    finally:
        reference.kill()
        await reference.wait()


async def restart(engine: VllmEngine, measured: Measured, before: list[list[int]]) -> None:
    """Kill the process with the weights, and measure the next start, which loads them from the image."""
    print("killing the engine and starting it again from the image", flush=True)
    assert engine._run is not None, "the engine runs"
    os.kill(max(process_tree(engine._run.process.pid)[2:], key=private_bytes), signal.SIGKILL)
    await engine.died()
    measured.restart = await timed(engine.start)
    report = await engine.running().ask_worker("memory_report")
    assert report["loaded_from_image"], "the weights were loaded from files, not from the image"
    measured.reload = report["load_seconds"]
    measured.answers_equal &= (await answers(engine, measured.answer_tokens))[0] == before


async def copies_of(reference: asyncio.subprocess.Process) -> dict[str, float]:
    assert reference.stdin is not None, "opened with pipes"
    assert reference.stdout is not None, "opened with pipes"
    reference.stdin.write(b"\n")
    answer: dict[str, float] = json.loads(await reference.stdout.readline())
    return answer


async def answers(engine: VllmEngine, tokens: int) -> tuple[list[list[int]], float]:
    """Each question's tokens, and the median seconds of an answer."""
    found, seconds = [], []
    for question in QUESTIONS:
        body = {"model": "expert", "prompt": question, "max_tokens": tokens, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        request = EngineRequest("POST", "/v1/completions", (("content-type", "application/json"),), to_bytes(body))
        began = time.perf_counter()
        async with engine.send(request) as response:
            answer = json.loads(b"".join([chunk async for chunk in response.chunks()]))
        seconds.append(time.perf_counter() - began)
        found.append(answer["choices"][0]["token_ids"])
    return found, median(seconds)


def to_bytes(body: object) -> bytes:
    return json.dumps(body).encode()


def held_bytes(engine: VllmEngine) -> int:
    assert engine._run is not None, "it runs"
    return private_bytes(engine._run.process.pid)


async def timed(act: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await act()
    return time.perf_counter() - began


def table_of(found: Measured) -> str:
    """The table as Markdown. Rates are the weights' bytes by the median seconds, without the first round."""
    size = found.weights_bytes
    ratio = median(found.reference[1:]) / median(found.worker_copy[1:])
    ratios = sorted(a / b for a, b in zip(found.reference[1:], found.worker_copy[1:], strict=True))
    rows = [
        ("cold start (loading the weights from files)", f"{found.cold_start:.1f} s ({found.load:.2f} s)"),
        ("start after a crash (loading the weights from the image)", f"{found.restart:.1f} s ({found.reload:.2f} s)"),
        ("first sleep", f"{found.sleep[0] * 1e3:.0f} ms"),
        ("later sleeps, median (worst)", f"{median(found.sleep[1:]) * 1e3:.0f} ms ({max(found.sleep) * 1e3:.0f} ms)"),
        ("first wake, with canary (in the worker alone)", f"{found.wake[0]:.3f} s ({found.worker_wake[0]:.3f} s)"),
        ("later wakes, with canary, median (worst)", f"{median(found.wake[1:]):.3f} s ({max(found.wake[1:]):.3f} s)"),
        ("... in the worker, weights and KV cache", f"{median(found.worker_wake[1:]):.3f} s"),
        ("... in the worker, weights alone", rate(size, found.worker_copy[1:])),
        ("reference: fresh memory, MADV_HUGEPAGE", rate(size, found.reference[1:])),
        ("**wake / reference** (single rounds)", f"**{ratio:.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"),
        ("warm copy", rate(size, found.warm[1:])),
        ("RssAnon awake / asleep", f"{mb(median(found.awake_bytes))} / {mb(median(found.asleep_bytes))}"),
        ("weights / image", f"{mb(size)} / {mb(found.image_bytes)}"),
        (f"one answer of {found.answer_tokens} tokens", f"{found.decode:.2f} s"),
        ("answers before and after, token for token", "equal" if found.answers_equal else "**DIFFERENT**"),
    ]
    lines = [f"| {what} | {figure} |" for what, figure in rows]
    how = f"`benchmarks/tiers.py`, {len(found.wake) - 1} rounds, {THREADS} thread, load {os.getloadavg()[0]:.1f}"
    return "\n".join([f"{how} on {os.cpu_count()} cores.", "", "| what | measured |", "|---|---|", *lines])


def rate(size_bytes: int, seconds: Sequence[float]) -> str:
    middle = median(seconds)
    return f"{middle:.3f} s = {size_bytes / middle / 1e9:.1f} GB/s"


def mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
