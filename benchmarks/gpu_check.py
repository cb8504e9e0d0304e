"""Checks that need a GPU: several engines on one card, and each expected figure beside the measured one.

    python benchmarks/gpu_check.py                          makes a model of 3 GB and serves it under three names
    python benchmarks/gpu_check.py --model FOLDER --vllm .venv/bin/vllm --write

Needs an NVIDIA card with 24 GB or more that no other program uses, and vLLM with CUDA. A whole server runs three
experts, of which two fit on the card together. Each row compares an expectation, from the server or vLLM's source,
with what NVML or a clock measured.
NOT RUN ON A GPU YET: tried only with stand-in engines on a pretend card (tests/cuda).
Exit code 1 if an answer changed, an engine did not start beside another one, or memory was not freed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import pynvml
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.document import document
from tests.ports import free_port

COE = Path(sys.executable).with_name("coe")
MAKER = Path(__file__).with_name("in_vllm") / "random_llama.py"
NAMES = ("left", "middle", "right")
GIB, MIB = 1 << 30, 1 << 20
QUESTIONS = ("hello", "the quick brown fox", "1 2 3 4 5 6 7 8", "What is a lease?")
LONG_PROMPT = "the quick brown fox jumps over the lazy dog " * 40
LONGEST_RETURN_SECONDS = 120.0  # until a killed engine answers again
LEFT_BYTES = 256 * MIB  # memory that the driver may keep after processes ended
SLACK_BYTES = 512 * MIB  # allowed difference between the ledger and NVML, for each process
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


@dataclass
class Row:
    """One check: the expectation, the finding, and whether it is acceptable."""

    what: str
    expected: str
    seen: str
    well: bool = True


@dataclass
class Check:
    """A running server and the card below it."""

    port: int
    process: subprocess.Popen[bytes]
    handle: Any
    rows: list[Row] = field(default_factory=list)

    def row(self, what: str, expected: str, seen: str, well: bool = True) -> None:
        self.rows.append(Row(what, expected, seen, well))
        print(f"{'ok  ' if well else 'NOT '} {what}: expected {expected}, seen {seen}", flush=True)

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 240.0) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = {"content-type": "application/json", "host": f"127.0.0.1:{self.port}"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            if response.status >= 300:
                raise RuntimeError(f"{method} {path}: {response.status} {text.decode(errors='replace')[:500]}")
            return json.loads(text)
        finally:
            connection.close()

    def experts(self) -> dict[str, dict[str, Any]]:
        return {expert["name"]: expert for expert in self.ask("GET", "/admin/experts")}

    def answers(self, name: str) -> list[str]:
        body = {"model": name, "max_tokens": 32, "temperature": 0}
        found = [self.ask("POST", "/v1/completions", {**body, "prompt": question}) for question in QUESTIONS]
        return [answer["choices"][0]["text"] for answer in found]

    def used(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used)

    def process_bytes(self) -> dict[int, int]:
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        return {one.pid: int(one.usedGpuMemory or 0) for one in running}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder (default: one of random weights is made)")
    parser.add_argument("--megabytes", type=int, default=3000, help="size of the model that is made (default 3000)")
    parser.add_argument("--vllm", default=".venv/bin/vllm", help="vLLM's program, words (default .venv/bin/vllm)")
    parser.add_argument("--kv-cache-gib", type=float, default=1.0, help="KV cache of each engine (default 1)")
    parser.add_argument(
        "--rounds", type=int, default=4, help="rounds in which the three are requested in turn (default 4)"
    )
    parser.add_argument("--copy-gbps", type=float, help="the copy limit in GB/s (default: measured with torch)")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks.md")
    options = parser.parse_args()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    card = pynvml.nvmlDeviceGetName(handle)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="coe-gpu-") as folder:
        model = options.model or made_model(Path(folder), options)
        limit = options.copy_gbps or measured_limit(options.vllm)
        rows = checked(Path(folder), model, limit, handle, options)
    lines = [f"| {row.what} | {row.expected} | {row.seen} | {'yes' if row.well else '**no**'} |" for row in rows]
    head = [f"{card}, load {os.getloadavg()[0]:.1f}, {time.monotonic() - began:.0f} s in all", ""]
    table = "\n".join([*head, "| what | expected | seen | as expected |", "|---|---|---|---|", *lines])
    print(f"\n{table}")
    if options.write:
        document("gpu", f"## Three experts on one GPU\n\n`python benchmarks/gpu_check.py`\n\n{table}")
    return 0 if all(row.well for row in rows) else 1


def made_model(folder: Path, options: argparse.Namespace) -> Path:
    python = Path(options.vllm.split()[0]).absolute().with_name("python")
    print(f"making a model of {options.megabytes} MB", flush=True)
    subprocess.run([python, MAKER, folder / "model", str(options.megabytes)], check=True)
    return folder / "model"


def measured_limit(vllm: str) -> float:
    """GB/s from pinned host memory to the card, the median of five copies of 2 GiB."""
    python = Path(vllm.split(maxsplit=1)[0]).absolute().with_name("python")
    found = subprocess.run([python, "-c", COPY_LIMIT], check=True, capture_output=True, text=True)
    return float(found.stdout) / 1e9


def checked(folder: Path, model: Path, limit: float, handle: Any, options: argparse.Namespace) -> list[Row]:
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    kv_cache = int(options.kv_cache_gib * GIB)
    before = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    two_awake = (
        round(2.5 * (weights + kv_cache)) + 3 * GIB
    )  # 3 GiB for what the three processes keep beside weights and KV cache
    with serving(folder, model, two_awake, kv_cache, options.vllm) as (port, process):
        check = Check(port, process, handle)
        if not until_loaded(check):
            return check.rows
        first = beside_each_other(check)
        moves(check, options.rounds, weights, limit)
        residue(check, before)
        growth(check)
        again = {name: check.answers(name) for name in NAMES}
        check.row(
            "answers before and after all moves", "equal", "equal" if again == first else "DIFFERENT", again == first
        )
        killed(check, first)
    left = settled(handle, before)
    check.row("left on the card after the end", f"at most {mib(LEFT_BYTES)}", mib(left), left <= LEFT_BYTES)
    return check.rows


def until_loaded(check: Check) -> bool:
    """Wait until all three have been started, each beside those that run already. False if one failed."""
    began = time.monotonic()
    deadline = began + 600
    while any(expert["residency"] == "disk" for expert in check.experts().values()):
        failed = {name: one["failure"] for name, one in check.experts().items() if one.get("failure")}
        if failed or time.monotonic() > deadline or check.process.poll() is not None:
            check.row("three starts beside each other", "all up", f"failed: {failed}", False)
            return False
        time.sleep(0.2)
    check.row("three starts beside each other", "all up at the first try", f"{time.monotonic() - began:.0f} s for all")
    return True


def beside_each_other(check: Check) -> dict[str, list[str]]:
    first = {name: check.answers(name) for name in NAMES}
    check.ask("POST", "/admin/experts/left/load")
    check.ask("POST", "/admin/experts/middle/load")
    awake = [name for name, expert in check.experts().items() if expert["residency"] == "device"]
    check.row("on the card together", "two of three", f"{len(awake)}: {', '.join(awake)}", len(awake) == 2)
    counted = sum(expert["bytes"]["device"] for expert in check.experts().values())
    seen = sum(check.process_bytes().values()) or check.used()
    near = abs(seen - counted) <= 3 * SLACK_BYTES
    check.row("bytes of all engines: ledger / NVML", mib(counted), mib(seen), near)
    return first


def moves(check: Check, rounds: int, weights: int, limit: float) -> None:
    """Request the three in turn, so that each round wakes and sleeps experts; the seconds are the server's own."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name in NAMES:
            check.answers(name)
            for expert in check.experts().values():
                move = expert.get("last_move")
                if move:
                    seconds.setdefault((move["from"], move["to"]), []).append(move["seconds"])
    wakes, sleeps = seconds.get(("host", "device"), []), seconds.get(("device", "host"), [])
    if not wakes or not sleeps:
        check.row("sleeps and wakes", "some of each", f"{len(sleeps)} and {len(wakes)}", False)
        return
    check.row(
        "sleep, median (slowest)", "under 5 s", f"{median(sleeps):.2f} s ({max(sleeps):.2f} s)", median(sleeps) < 5
    )
    speed = weights / median(wakes) / 1e9
    told = f"{median(wakes):.2f} s ({max(wakes):.2f} s), {speed:.1f} GB/s with its canary"
    check.row("wake, median (slowest)", f"a pinned copy has {limit:.1f} GB/s, vLLM's own wake about 0.6 of that", told)
    check.row("wake / pinned copy", "0.6", f"{speed / limit:.2f}")


def residue(check: Check, before: int) -> None:
    """The device memory that sleeping engines keep, by the ledger and by NVML."""
    asleep = {name: one for name, one in check.experts().items() if one["residency"] == "host"}
    for name, expert in asleep.items():
        check.row(
            f"'{name}' keeps on the card while asleep",
            "1.3 to 1.9 GiB, less with few graphs",
            mib(expert["bytes"]["device"]),
        )
    for pid, size in sorted(check.process_bytes().items(), key=lambda one: one[1]):
        check.row(f"process {pid}", "as its expert in the ledger", mib(size))
    check.row("card in use beside all engines", mib(before), mib(check.used() - sum(check.process_bytes().values())))


def growth(check: Check) -> None:
    """Memory growth by a long prompt: vLLM profiles the longest prompt at its start, so there should be none."""
    before = check.used()
    check.ask("POST", "/v1/completions", {"model": "left", "prompt": LONG_PROMPT, "max_tokens": 4, "temperature": 0})
    loaded = check.used()
    check.ask(
        "POST", "/v1/completions", {"model": "left", "prompt": LONG_PROMPT * 2, "max_tokens": 4, "temperature": 0}
    )
    grown = check.used() - loaded
    told = f"{mib(grown)} (with the move before it {mib(loaded - before)})"
    check.row("growth by a longer prompt", f"at most {mib(SLACK_BYTES)}", told, grown <= SLACK_BYTES)


def killed(check: Check, first: dict[str, list[str]]) -> None:
    pids = check.process_bytes()
    if not pids:
        check.row("an engine killed", "comes back", "NVML names no process here: not tried")
        return
    os.kill(max(pids, key=lambda pid: pids[pid]), signal.SIGKILL)
    began = time.monotonic()
    errors, found = 0, None
    while found is None and time.monotonic() - began < LONGEST_RETURN_SECONDS:
        try:
            found = {name: check.answers(name) for name in NAMES}
        except RuntimeError:  # requests in progress, and those sent before the server noticed the death
            errors += 1
            time.sleep(0.5)
    told = f"{'right' if found == first else 'WRONG'} after {time.monotonic() - began:.0f} s and {errors} errors"
    check.row("an engine killed: asked again", "right answers after a new start", told, found == first)


def settled(handle: Any, before: int) -> int:
    """Bytes that were not freed within ten seconds."""
    deadline = time.monotonic() + 10
    while (
        left := int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) - before
    ) > LEFT_BYTES and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@contextmanager
def serving(
    folder: Path, model: Path, device: int, kv_cache: int, vllm: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    expert = {"engine": "vllm", "model": str(model.absolute()), "preload": "host"}
    settings = {
        "http": {"port": port},
        "memory": {"device": device},
        "vllm": {"command": vllm.split(), "platform": "cuda", "kv_cache": kv_cache},
        "state_directory": str(folder / "state"),
        "scheduling": {"prefetch": False},  # no move between two readings that are compared
        "experts": [{"name": name, **expert} for name in NAMES],
    }
    config, log = folder / "serve.yaml", folder / "server.log"
    config.write_text(yaml.safe_dump(settings))
    with log.open("wb") as output:
        process = subprocess.Popen([COE, "serve", config, "--names-only"], stdout=output, stderr=output)
    try:
        until_answering(port, process, log)
        yield port, process
    finally:
        process.terminate()
        process.wait(60)
        print(log.read_text()[-2000:] if process.returncode else "", flush=True)


def until_answering(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"the server did not start:\n{log.read_text()[-3000:]}")


def mib(size_bytes: float) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
