"""How fast one real expert moves between the tiers of a GPU host, beside the limit of its bus. NEVER RUN YET.

    python benchmarks/gpu_check.py MODEL [--command .venv/bin/vllm] [--kv-cache-gib 4] [--rounds 5]

Written where no GPU was: neither this script nor the driver's CUDA path has met a real card. Needs an NVIDIA GPU that
nobody else uses, vLLM with CUDA, and MODEL as a folder. Each wake is checked by the driver's canary. The limit is
measured with torch in vLLM's environment: copies from pinned host memory to the device, the median of five.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from coe_server.engines.device_memory import used_device_bytes
from coe_server.engines.vllm import VllmEngine
from coe_server.engines.vllm_command import VllmLaunch, model_bytes

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
            model=str(asked.model),
            kv_cache_bytes=asked.kv_cache_gib << 30,
            log_directory=Path(folder),
            platform="cuda",
            command=(str(asked.command.absolute()),),
        )
        file_bytes = model_bytes(launch.model)
        assert file_bytes is not None, "a folder tells its size"
        print(asyncio.run(measure(launch, limit, asked.rounds, file_bytes)))
    return 0


async def measure(launch: VllmLaunch, limit: float, rounds: int, file_bytes: int) -> str:
    """Start, then sleep and wake; what NVML saw is what counts. Returns the table."""
    engine, before = VllmEngine(launch), used_device_bytes()
    try:
        start = await timed(engine.start)
        awake, sleeps, wakes, freed = used_device_bytes(), [], [], []
        for _ in range(rounds + 1):
            sleeps.append(await timed(engine.sleep))
            freed.append(awake - used_device_bytes())
            wakes.append(await timed(engine.wake))
    finally:
        await engine.stop()
    speed = file_bytes / median(wakes[1:])
    rows = [
        ("start", f"{start:.1f} s"),
        ("first sleep / later, median", f"{sleeps[0]:.2f} s / {median(sleeps[1:]):.2f} s"),
        ("first wake with canary / later, median", f"{wakes[0]:.2f} s / {median(wakes[1:]):.2f} s"),
        ("weight files by a later wake", f"{speed / 1e9:.1f} GB/s"),
        ("limit: pinned host memory to device", f"{limit / 1e9:.1f} GB/s"),
        ("**wake / limit** (canary included)", f"**{speed / limit:.2f}**"),
        ("device held awake / freed by a sleep, median", f"{gb(awake - before)} / {gb(median(freed))}"),
        ("device left after the end", gb(used_device_bytes() - before)),
    ]
    lines = [f"| {what} | {figure} |" for what, figure in rows]
    return "\n".join([f"load {os.getloadavg()[0]:.1f}", "", "| what | measured |", "|---|---|", *lines])


async def timed(act: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await act()
    return time.perf_counter() - began


def gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
