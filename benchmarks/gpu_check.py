"""How fast one real expert moves between the tiers of a GPU host, beside the limit of its bus. NEVER RUN YET.

    python benchmarks/gpu_check.py MODEL [--command .venv/bin/vllm] [--kv-cache-gib 4] [--rounds 5]

Written where no GPU was: neither this script nor the CUDA path of the driver has met a card. Needs an NVIDIA GPU that
nobody else uses (the first of CUDA_VISIBLE_DEVICES), vLLM with CUDA, and a folder MODEL. What NVML saw is what counts.
Each wake is checked by our own canary, and some questions are asked before the first sleep and after each wake. The
first sleep is rehearsed in the start, so its time is in the start's. The limit is measured with torch in vLLM's
environment: copies from pinned host memory to the device, the median of five. A sleep is ordered while an answer is
under way, too: it must wait for its end. Status 1 if an answer changed or was cut, or memory did not come back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from coe_server.engines.cards import used_device_bytes
from coe_server.engines.engine import EngineRequest
from coe_server.engines.memory import available_host_bytes
from coe_server.engines.vllm import VllmEngine
from coe_server.engines.vllm_command import VllmLaunch, model_bytes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.document import document

QUESTIONS = ("hello", "the quick brown fox", "1 2 3 4 5 6 7 8", "What is a lease?")
_LEFT_BYTES = 64 << 20  # the driver's own rounding
COPY_LIMIT = """
import statistics, time, torch
source = torch.empty(2 << 30, dtype=torch.uint8, pin_memory=True)
target = torch.empty_like(source, device="cuda")
def copy():
    began = time.perf_counter()
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return time.perf_counter() - began
copy()
print(source.nbytes / statistics.median(copy() for _ in range(5)))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's folder")
    parser.add_argument("--command", type=Path, default=Path(".venv/bin/vllm"), help="vLLM (default .venv/bin/vllm)")
    parser.add_argument("--kv-cache-gib", type=int, default=4, help="size of the KV cache (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="sleeps and wakes after the first (default 5)")
    asked = parser.parse_args()
    python = asked.command.absolute().with_name("python")
    limit = float(subprocess.run([python, "-c", COPY_LIMIT], check=True, capture_output=True, text=True).stdout)
    with tempfile.TemporaryDirectory(prefix="coe-gpu-") as folder:
        launch = VllmLaunch(
            name="expert",
            inherited=os.environ,
            model=str(asked.model),
            kv_cache_bytes=asked.kv_cache_gib << 30,
            log_directory=Path(folder),
            platform="cuda",
            command=(str(asked.command.absolute()),),
        )
        file_bytes = model_bytes(launch.model)
        assert file_bytes is not None, "a folder tells its size"
        table, well = asyncio.run(measure(launch, limit, asked.rounds, file_bytes))
    print(table)
    document("gpu", f"## One expert on a GPU: {asked.model.name}\n\n{table}")
    return 0 if well else 1


async def measure(launch: VllmLaunch, limit: float, rounds: int, file_bytes: int) -> tuple[str, bool]:
    """Start, then sleep and wake; the table, and whether all went well."""
    engine, before, host_before = VllmEngine(launch), used_device_bytes(), available_host_bytes()
    sleeps, wakes, freed, hosts = [], [], [], []
    try:
        start = await timed(engine.start)
        awake, first = used_device_bytes(), await answers(engine)
        equal = first == await answers(engine)  # else comparing after a wake would tell nothing
        for _ in range(rounds):
            sleeps.append(await timed(engine.sleep))
            freed.append(awake - used_device_bytes())
            hosts.append(host_before - available_host_bytes())
            wakes.append(await timed(engine.wake))
            equal &= await answers(engine) == first
        footprint = engine.footprint
        waited = await sleep_waits_for_answers(engine)
    finally:
        await engine.stop()
    left, speed = used_device_bytes() - before, file_bytes / median(wakes)
    rows = [
        ("start, first sleep and wake included", f"{start:.1f} s"),
        ("sleep, median (slowest)", f"{median(sleeps):.3f} s ({max(sleeps):.3f} s)"),
        ("wake with canary, median (slowest)", f"{median(wakes):.3f} s ({max(wakes):.3f} s)"),
        ("weight files by a wake", f"{speed / 1e9:.1f} GB/s"),
        ("limit: pinned host memory to device", f"{limit / 1e9:.1f} GB/s"),
        ("**wake / limit** (canary included)", f"**{speed / limit:.2f}**"),
        ("device held awake / freed by a sleep, median", f"{gb(awake - before)} / {gb(median(freed))}"),
        ("device kept by the sleeping process, as the ledger counts it", gb(footprint.device_asleep)),
        ("host memory taken while asleep / as the ledger counts it", f"{gb(median(hosts))} / {gb(footprint.host)}"),
        ("answers before and after, token for token", "equal" if equal else "**DIFFERENT**"),
        ("a sleep during an answer", "waits for its end" if waited else "**ABORTS IT**"),
        ("device left after the end", gb(left)),
    ]
    lines = [f"| {what} | {figure} |" for what, figure in rows]
    table = "\n".join([f"load {os.getloadavg()[0]:.1f}", "", "| what | measured |", "|---|---|", *lines])
    return table, equal and waited and left < _LEFT_BYTES


async def sleep_waits_for_answers(engine: VllmEngine) -> bool:
    """Whether an answer that is under way when the sleep is ordered comes to its own end."""
    answer = asyncio.create_task(ask(engine, QUESTIONS[0], tokens=512))
    await asyncio.sleep(0.5)  # it is being written by now, and 512 tokens take longer
    await engine.sleep()
    await engine.wake()
    choice = (await answer)["choices"][0]
    return bool(choice["finish_reason"] == "length")


async def answers(engine: VllmEngine) -> list[list[int]]:
    """Each question's tokens, greedy."""
    return [(await ask(engine, question, tokens=64))["choices"][0]["token_ids"] for question in QUESTIONS]


async def ask(engine: VllmEngine, question: str, tokens: int) -> Any:
    body = {"model": "expert", "prompt": question, "max_tokens": tokens, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    headers = (("content-type", "application/json"),)
    async with engine.send(EngineRequest("POST", "/v1/completions", headers, json.dumps(body).encode())) as response:
        return json.loads(b"".join([chunk async for chunk in response.chunks()]))


async def timed(act: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await act()
    return time.perf_counter() - began


def gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
