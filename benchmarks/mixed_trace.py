"""A mixed trace at the endpoint: the demo's five experts on real vLLM engines on the CPU, of which two fit in memory.

    python benchmarks/mixed_trace.py [--faults] [--requests 300] [--rate 1.5] [--seed 0] [--json FILE] [--known FILE]

1. The demo's held-out questions arrive as a Poisson process with `model: auto`; every other one is streamed. With
   `--faults`, three engines are killed (SIGKILL of the process with the weights) and one is frozen (SIGSTOP).
2. Every answer is compared with the same expert's answer without load. `--known` keeps these from run to run.
3. Every expert is unloaded, the server is stopped, and leftovers are counted.

Without faults, the simulator predicts the waits of the same trace from this run's median seconds of moves and answers.
Exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.document import document
from benchmarks.leftovers import Leftovers, engine_cores, is_frozen
from benchmarks.load_client import Asker, Seen
from benchmarks.prediction import MEDIAN_OF, predicted_waits
from coe_server.engines.memory import private_bytes
from demo.service import Service, running_service

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/demo.yaml"
DEADLINE_SECONDS = 300.0  # of each request; the server's own bound is longer (`coe validate configs/demo.yaml`)
UNLIMITED = aiohttp.ClientTimeout(total=None)  # `Asker` enforces the deadlines
MOST_TOKENS = 48  # as in the demo
LOOK_SECONDS = 0.25
_WEIGHTS = 100 << 20  # bytes: a process with less memory than this holds no weights
FAULTS = ("kill", "kill", "hang", "kill")


@dataclass
class Story:
    """The results of one run."""

    seen: list[Seen] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # the server's own words for what it noticed
    held: dict[str, dict[str, int]] = field(default_factory=dict)  # the most each expert held
    differing: int = 0  # answers that are not what the expert says alone
    left: list[str] = field(default_factory=list)
    processes: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", action="store_true", help="kill three engines and freeze one")
    parser.add_argument("--requests", type=int, default=300, help="how many (default 300, at most 300)")
    parser.add_argument("--rate", type=float, default=1.5, help="arrivals per second (default 1.5)")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and order (default 0)")
    parser.add_argument("--json", type=Path, help="also write everything that was seen to this file")
    parser.add_argument("--known", type=Path, help="answers that experts gave alone; read if there, then written")
    parser.add_argument("--no-document", action="store_true", help="leave docs/benchmarks.md as it is")
    asked = parser.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped and its files removed
    known = json.loads(asked.known.read_text()) if asked.known and asked.known.exists() else {}
    story = run(asked.requests, asked.rate, asked.seed, asked.faults, known)
    if asked.known:
        asked.known.write_text(json.dumps(known, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(asdict(story), indent=1))
    broken = broken_promises(story)
    table = table_of(story, asked.faults, asked.rate) + ("\n\nBroken: " + "; ".join(broken) + "." if broken else "")
    print(table)
    if not asked.no_document:
        name = "mixed trace, faults" if asked.faults else "mixed trace"
        title = "with three kills and a hang" if asked.faults else "without faults"
        document(name, f"## Mixed trace at the endpoint, {title}\n\n{table}")
    return 1 if broken else 0


def run(requests: int, rate: float, seed: int, faults: bool, known: dict[str, str]) -> Story:
    """The server from start to end; what it leaves is counted once it is gone."""
    story = Story()
    with private_run_directories() as folder:
        leftovers = Leftovers(folder)
        with running_service(CONFIG, console=Console(stderr=True)) as service:
            trace = arrivals(requests, rate, seed)
            asyncio.run(play(service, story, trace, leftovers, FAULTS if faults else (), known))
            story.moves = list(service.moves)
        story.left += leftovers.left()
        story.processes = leftovers.seen
    return story


@contextmanager
def private_run_directories() -> Iterator[Path]:
    """The server puts its engines' sockets and files into a directory of its own."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="coe-mixed-", dir="/tmp") as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before


def arrivals(requests: int, rate: float, seed: int) -> list[tuple[float, str]]:
    """Seconds and questions, shuffled; the same seed makes the same trace."""
    rows = (ROOT / "demo/data/held_out.prompts.jsonl").read_text().splitlines()
    chance = random.Random(seed)
    questions = chance.sample([str(json.loads(row)["prompt"]) for row in rows], requests)
    seconds, trace = 0.0, []
    for question in questions:
        seconds += chance.expovariate(rate)
        trace.append((seconds, question))
    return trace


async def play(
    service: Service,
    story: Story,
    trace: list[tuple[float, str]],
    leftovers: Leftovers,
    faults: tuple[str, ...],
    known: dict[str, str],
) -> None:
    began = time.monotonic()

    def clock() -> float:
        return time.monotonic() - began

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=UNLIMITED) as session:
        asker = Asker(session, service.url, clock, DEADLINE_SECONDS)
        watching = asyncio.create_task(watch(service, session, story, leftovers))
        hurting = asyncio.create_task(hurt(service, session, story, trace[-1][0], faults, clock))
        story.seen = await ask_all(asker, trace)
        await hurting
        story.left += await idle(service, session)
        print(f"{len(story.seen)} requests ended after {clock():.0f} s; asking again, one by one", file=sys.stderr)
        story.differing = await compare(asker, [question for _, question in trace], story.seen, known)
        story.left += await unload_everything(service, session)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def ask_all(asker: Asker, trace: list[tuple[float, str]]) -> list[Seen]:
    asked = []
    for number, (arrival, question) in enumerate(trace):
        await asyncio.sleep(max(0.0, arrival - asker.clock()))
        asked.append(asyncio.create_task(asker.ask(question, "auto", MOST_TOKENS, stream=number % 2 == 1)))
    return await asyncio.gather(*asked)


async def hurt(
    service: Service,
    session: aiohttp.ClientSession,
    story: Story,
    seconds: float,
    faults: tuple[str, ...],
    clock: Callable[[], float],
) -> None:
    """Inject the faults at even distances over the trace, each into an engine that is answering at that moment."""
    for number, fault in enumerate(faults, 1):
        await asyncio.sleep(max(0.0, seconds * number / (len(faults) + 1) - clock()))
        while (found := await busy_core(service, session)) is None:  # no event tells that an engine begins to answer
            pass
        victim, pid = found
        os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        story.faults.append(f"{fault} of {victim} at {clock():.0f} s")
        print(story.faults[-1], file=sys.stderr)


async def busy_core(service: Service, session: aiohttp.ClientSession) -> tuple[str, int] | None:
    """The expert with the most answers in progress, and the process with its weights; not one that is being stopped."""
    experts = await experts_of(service, session)
    cores = engine_cores(service.process.pid)
    busy = [one for one in experts if one["state"] == "device" and one["leases"] and one["name"] in cores]
    awake = [one for one in busy if not is_frozen(cores[one["name"]]) and private_bytes(cores[one["name"]]) > _WEIGHTS]
    victim = max(awake, key=lambda one: one["leases"])["name"] if awake else None
    return (victim, cores[victim]) if victim else None


async def watch(service: Service, session: aiohttp.ClientSession, story: Story, leftovers: Leftovers) -> None:
    """Record every process, every failure, and the peak memory of each expert."""
    while True:
        await asyncio.to_thread(leftovers.note, service.process.pid)
        for expert in await experts_of(service, session):
            most = story.held.setdefault(expert["name"], {"device": 0, "host": 0})
            most |= {tier: max(most[tier], size) for tier, size in expert["bytes"].items()}
            failure = expert["failure"]
            if failure and failure not in story.failures:
                story.failures.append(failure)
        await asyncio.sleep(LOOK_SECONDS)


async def experts_of(service: Service, session: aiohttp.ClientSession) -> list[dict[str, Any]]:
    """Those with an engine; adapters share one."""
    async with session.get(f"{service.url}/admin/experts") as answer:
        found: list[dict[str, Any]] = await answer.json()
        return [one for one in found if not one["base"]]


async def idle(service: Service, session: aiohttp.ClientSession) -> list[str]:
    """After the last answer: the leases and queued requests that do not end within 30 seconds."""
    deadline = time.monotonic() + 30
    while True:
        experts = await experts_of(service, session)
        busy = [f"{one['name']}: {one['leases']} leases, {one['queued']} queued" for one in experts]
        busy = [line for line, one in zip(busy, experts, strict=True) if one["leases"] or one["queued"]]
        if not busy or time.monotonic() > deadline:
            return busy
        await asyncio.sleep(LOOK_SECONDS)


async def compare(asker: Asker, questions: list[str], seen: list[Seen], known: dict[str, str]) -> int:
    """The number of answers that differ from the same expert's answer without load."""
    pairs = [(one, question) for one, question in zip(seen, questions, strict=True) if one.ending == "answered"]
    differing = 0
    for one, question in sorted(pairs, key=lambda pair: pair[0].expert):
        key = f"{one.expert}: {question}"
        if key not in known:
            alone = await asker.ask(question, one.expert, MOST_TOKENS, stream=False)
            if alone.ending == "answered":
                known[key] = alone.text
        if one.text != known.get(key):
            differing += 1
            print(f"differs: {key!r}: {one.text!r}, without load {known.get(key)!r}", file=sys.stderr)
    return differing


async def unload_everything(service: Service, session: aiohttp.ClientSession) -> list[str]:
    """Unload every expert to disk; returns what the ledger still counts after that."""
    deadline = time.monotonic() + 400  # an expert that is being prefetched has to finish its start first
    while True:
        experts = await experts_of(service, session)
        held = [one for one in experts if any(one["bytes"].values()) or one["state"] != "disk"]
        if not held or time.monotonic() > deadline:
            return [f"ledger: {one['name']} is {one['state']} and holds {one['bytes']}" for one in held]
        for one in held:
            async with session.post(f"{service.url}/admin/experts/{one['name']}/unload"):
                pass
        await asyncio.sleep(LOOK_SECONDS)


def broken_promises(story: Story) -> list[str]:
    endings = Counter(one.ending for one in story.seen)
    broken = [f"{count} requests ended {ending}" for ending, count in endings.items() if ending in {"broken", "late"}]
    if story.differing:
        broken.append(f"{story.differing} answers differ")
    if not story.faults and endings["refused"]:
        broken.append(f"{endings['refused']} requests were refused without a fault")
    return broken + story.left


def table_of(story: Story, faults: bool, rate: float) -> str:
    endings = Counter(one.ending for one in story.seen)
    answered = [one for one in story.seen if one.ending == "answered"]
    rows = [
        ("requests / answered / clear error / broken / late", " / ".join(str(n) for n in counts(story.seen))),
        ("answers that differ from the same expert's without load", str(story.differing)),
        ("first arrival to last answer", f"{max(one.finished for one in story.seen):.0f} s"),
        *wait_rows(story, answered, faults),
        *(("fault", text) for text in story.faults),
        *((f"{count} x error", text) for text, count in errors_of(story.seen)),
        *((kind, text) for kind, text in move_rows(story.moves)),
        (
            "left at the end (leases, ledger bytes, processes, shared memory, run directories)",
            f"{len(story.left)} of {story.processes} processes and all else" if story.left else "nothing",
        ),
    ]
    assert sum(endings.values()) == len(story.seen)
    how = (
        f"`benchmarks/mixed_trace.py{' --faults' if faults else ''}`: {len(story.seen)} requests, {rate:g} a second, "
        f"five experts, two of them on the device, three processes; load {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores ({processor()})."
    )
    lines = [f"| {what} | {figure} |" for what, figure in rows]
    return "\n".join([how, "", "| what | seen |", "|---|---|", *lines])


def counts(seen: list[Seen]) -> tuple[int, ...]:
    endings = Counter(one.ending for one in seen)
    return (len(seen), *(endings[ending] for ending in ("answered", "refused", "broken", "late")))


def wait_rows(story: Story, answered: list[Seen], faults: bool) -> list[tuple[str, str]]:
    waits = sorted(one.waited for one in answered)
    rows = [("wait: mean / p95 / longest", wait_text(waits))]
    if not faults:
        expected = predicted_waits(CONFIG, answered, story.moves, story.held)
        rows.append(("simulated with this run's median times", wait_text(expected)))
        rows.append(("**p95 seen / simulated**", f"**{p95(waits) / p95(expected):.2f}**"))
    return rows


def wait_text(waits: list[float]) -> str:
    return f"{sum(waits) / len(waits):.1f} / {p95(waits):.1f} / {waits[-1]:.1f} s"


def p95(ordered: list[float]) -> float:
    return ordered[ceil(0.95 * len(ordered)) - 1]


def errors_of(seen: list[Seen]) -> list[tuple[str, int]]:
    return Counter(one.text for one in seen if one.ending != "answered").most_common()


def move_rows(moves: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for kind, ends in MEDIAN_OF.items():
        seconds = [move["seconds"] for move in moves if (move["from"], move["to"]) in ends]
        if seconds:
            yield f"{kind}: seen, median, slowest", f"{len(seconds)}, {median(seconds):.2f} s, {max(seconds):.2f} s"


def processor() -> str:
    flags = Path("/proc/cpuinfo").read_text()
    return next(name for name in ("avx512_bf16", "avx512f", "avx2", "no AVX2") if name in flags or name == "no AVX2")


if __name__ == "__main__":
    sys.exit(main())
