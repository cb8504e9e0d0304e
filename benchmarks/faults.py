"""Many faults at once: afterwards no lease is held, no process is left, and no answer came from the wrong expert.

    python benchmarks/faults.py                     30 seconds, 50 clients
    python benchmarks/faults.py --seconds 600 --clients 200 --vllm .venv-vllm/bin/vllm --write
    python benchmarks/faults.py --handover          unsure answers are handed over, and again

The server runs as a process. Its experts:

- two stand-in engine processes with vLLM's protocol (tests/engines); one is killed or frozen every few seconds
- two simulated engines; memory has room for three of these four
- a misbehaving remote server (`misbehaving_remote.py`), which counts its requests
- with `--vllm` a sixth expert on real vLLM: one client in twenty requests it, and few of the faults hit it

A tenth of the clients disconnect at a random moment, and some read slowly. The router's artifact is replaced by a good
and a damaged one in turn. A separate process requests /healthz throughout. Exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.document import document
from benchmarks.leftovers import engine_cores
from benchmarks.misbehaving_remote import CODE
from coe_server import errors
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests/engines/stand_in_vllm.py"
HEALTH_PROBE = ROOT / "benchmarks/health_probe.py"
MISBEHAVING_REMOTE = ROOT / "benchmarks/misbehaving_remote.py"
EITHER = ROOT / "benchmarks/in_vllm/real_or_stand_in.py"
REAL_MODEL = ROOT / "demo/experts/generalist"
PROCESSES, SIMULATED, REMOTE, REAL = ("french", "python"), ("generalist", "sql"), "units", "real"
PROMPTS = {
    "french": "English to French: your beautiful round boats",
    "python": "Give me a Python one-liner for all but the last price",
    "sql": "Write SQL: how many customers are there?",
    "units": "942 metres in decimetres",
    "generalist": "Hello, how are you?",
}
MIB = 2**20
SHARE_HANGING_UP, SHARE_SLOW, SHARE_ROUTED, SHARE_STREAMED = 0.1, 0.05, 0.4, 0.8
CLIENTS_FOR_EACH_OF_REAL = 20
FAULTS_FOR_EACH_OF_REAL = 40  # real vLLM takes half a minute and more to restart
REAL_TIMEOUT_SECONDS = 100.0  # x-request-timeout of requests to real vLLM
REAL_START_SECONDS = 300.0
QUIET_WITHIN_SECONDS = 90.0
_LOOKS = 20  # the last samples of memory, one a second; their median counts
MOST_HEALTH_MS = 100.0  # limit of /healthz
BUSY_MS = 10.0  # a timer that is later than this at p99 shows that the machine had no free processor
BUSY_SHARE = 0.1  # so does a server that was ready to run and waited for a processor for more than this of the time
LEAST_SECONDS_FOR_MEMORY = 120.0  # in a shorter run, the logs of events and decisions have not reached their limits


def every_code() -> set[str]:
    """The codes of all documented errors."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CoeError)]
    return {kind.code for kind in kinds}


CODES = (every_code() - {"internal_error"}) | {CODE}  # without routing, a remote's error is passed through


@dataclass(slots=True)
class Findings:
    """Counts of what happened; `wrong` has one sentence for each broken promise."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    answered: int = 0
    answered_by_real: int = 0
    remote: Counter[str] = field(default_factory=Counter)  # behaviours of the remote server
    reloads: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    health: str = ""  # response times of /healthz
    handovers: int = 0

    def must(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.wrong.append(sentence)


@dataclass(frozen=True, slots=True)
class Server:
    """The server's process and address, the folder in all its processes' arguments, and each engine's right answer."""

    process: subprocess.Popen[bytes]
    url: str
    remote_url: str
    folder: Path
    digests: dict[str, str]
    has_real: bool
    known: dict[str, str] = field(default_factory=dict)  # prompt -> the real engine's answer without load

    @property
    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def waited_seconds(self) -> float:
        """How long its event loop's thread was ready to run and had no processor (Linux, sched-stats)."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9

    def engines(self) -> list[int]:
        """Processes of stand-in engines, without their keepers."""
        return [pid for pid, words in _processes(self.folder) if words[1:2] == [str(STAND_IN)]]

    def real_engines(self) -> list[int]:
        """The process with the real expert's weights, if it runs."""
        return [pid for name, pid in engine_cores(self.process.pid).items() if name == REAL]


def main() -> None:
    options = _options()
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="coe-faults-") as made:
        folder = Path(made).resolve()
        with _running(folder, options.artifact, options.vllm, options.handover) as server:
            memory = asyncio.run(_story(server, options, findings))
        left = [pid for pid, _ in _processes(folder)]
        findings.must(not left, f"{len(left)} processes are left after the end")
        ended = server.process.returncode  # uvicorn ends by the signal that it received
        findings.must(ended in (0, -signal.SIGTERM), f"the server ended with {ended}")
    text = _text(options, findings, memory)
    print(text)
    if options.write:
        document("faults", text)
    raise SystemExit(1 if findings.wrong else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, default=ROOT / "artifacts/demo-router", help="the demo's router")
    parser.add_argument("--vllm", type=Path, help="vLLM's program: adds an expert on a real engine")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--handover", action="store_true", help="hand unsure answers over, up to twice")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks.md")
    return parser.parse_args()


async def _look_at_memory(server: Server, sizes: list[int]) -> None:
    while True:
        sizes.append(server.resident_bytes)
        await asyncio.sleep(1.0)


async def _story(server: Server, options: argparse.Namespace, findings: Findings) -> tuple[int, int]:
    """Warm up under load and faults, measure memory, run for the whole time, measure again.

    Memory varies by some MiB with the requests in flight, so the median of the last seconds counts.
    """
    chance = random.Random(options.seed)
    timeout = aiohttp.ClientTimeout(total=180)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, max_field_size=2**16) as session:
        await _all_is_up(session, server)
        if server.has_real:
            await _ask_real_without_load(session, server)
        sizes: list[int] = []
        looking = asyncio.create_task(_look_at_memory(server, sizes))
        with _health_watched(server, findings):
            await _trouble(session, server, chance, options.clients, min(60.0, options.seconds / 2) - 1.0, findings)
            before = round(median(sizes[-_LOOKS:]))
            await _trouble(session, server, chance, options.clients, options.seconds, findings)
            after = round(median(sizes[-_LOOKS:]))
        looking.cancel()
        await _nothing_was_sent_twice(session, server, findings)
        findings.handovers = await _handovers(session, server)
    findings.must(findings.handovers > 0 or not options.handover, "no answer was handed over")
    if options.seconds >= LEAST_SECONDS_FOR_MEMORY:
        findings.must(after <= 1.05 * before, f"memory grew from {before // MIB} to {after // MIB} MiB")
    findings.must(findings.answered > 0, "no request was answered")
    findings.must(not server.has_real or findings.answered_by_real > 0, "real vLLM answered no request")
    return before, after


@contextmanager
def _health_watched(server: Server, findings: Findings) -> Iterator[None]:
    """Response times of /healthz meanwhile, seen by a separate process.

    The limit applies to p99, or to the median if that process or the server itself had to wait for a processor.
    """
    began, waited_seconds = time.monotonic(), server.waited_seconds
    command = (sys.executable, str(HEALTH_PROBE), server.url)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as probe:
        try:
            yield
            waiting_share = (server.waited_seconds - waited_seconds) / (time.monotonic() - began)
            seen: dict[str, list[float]] = json.loads(probe.communicate(timeout=QUIET_WITHIN_SECONDS)[0])
        finally:
            probe.kill()
    answers, late = seen["answers_ms"], seen["late_ms"]
    is_busy = _share(late, 0.99) > BUSY_MS or waiting_share > BUSY_SHARE
    share = 0.5 if is_busy else 0.99
    median_ms, most_ms = _share(answers, 0.5), _share(answers, 0.99)
    findings.health = (
        f"/healthz, {len(answers):,} requests: median {median_ms:.1f} ms, p99 {most_ms:.0f} ms, longest "
        f"{max(answers):.0f} ms. The timer of the probe was {_share(late, 0.99):.1f} ms late at p99, and the server "
        f"waited {100 * waiting_share:.0f} % of the time for a processor, so the limit of "
        f"{MOST_HEALTH_MS:g} ms applies to {'the median' if is_busy else 'p99'}."
    )
    findings.must(_share(answers, share) < MOST_HEALTH_MS, f"/healthz was too slow: {findings.health}")


def _share(values: list[float], share: float) -> float:
    """The quantile at this share, 0 to 1."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


async def _nothing_was_sent_twice(session: aiohttp.ClientSession, server: Server, findings: Findings) -> None:
    async with session.get(f"{server.remote_url}/counts") as response:
        counts = await response.json()
    findings.remote.update(counts["done"])
    findings.must(counts["read"] > 0, "the remote server received no request")
    findings.must(not counts["twice"], f"sent upstream more than once: {counts['twice'][:5]}")


async def _handovers(session: aiohttp.ClientSession, server: Server) -> int:
    async with session.get(f"{server.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith("coe_handovers_total")))


async def _trouble(
    session: aiohttp.ClientSession,
    server: Server,
    chance: random.Random,
    clients: int,
    seconds: float,
    findings: Findings,
) -> None:
    ends = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            name = f"{round(seconds)}-{number}"  # makes every request of a run different
            group.create_task(_client(session, server, random.Random(chance.random()), name, ends, findings))
        group.create_task(_saboteur(server, random.Random(chance.random()), ends, findings))
        group.create_task(_reloads(session, server, ends, findings))
    await _all_is_quiet(session, server, findings)


async def _client(
    session: aiohttp.ClientSession, server: Server, chance: random.Random, name: str, ends: float, findings: Findings
) -> None:
    count = 0
    asks_real = server.has_real and int(name.partition("-")[2]) % CLIENTS_FOR_EACH_OF_REAL == 0
    while time.monotonic() < ends:
        count += 1
        mark = f"ask-{name}-{count}"
        ask = _ask_real if asks_real else _ask
        asked = asyncio.create_task(ask(session, server, chance, mark, findings))
        if chance.random() < SHARE_HANGING_UP:
            await asyncio.wait((asked,), timeout=chance.choice((0.0, 0.02, 0.2, 1.0)) * chance.random())
            asked.cancel()
            with suppress(asyncio.CancelledError):
                await asked
                continue
            findings.outcomes["hung up"] += 1
        else:
            await asked
        await asyncio.sleep(0.05)  # after an error too: no client retries without a pause


async def _ask(
    session: aiohttp.ClientSession, server: Server, chance: random.Random, mark: str, findings: Findings
) -> None:
    expert = chance.choice((*PROCESSES, *SIMULATED, REMOTE))
    model = "auto" if chance.random() < SHARE_ROUTED else expert
    streamed = chance.random() < SHARE_STREAMED
    body = {"model": model, "stream": streamed, "messages": [{"role": "user", "content": f"{PROMPTS[expert]} {mark}"}]}
    said = await _said(session, server, body, chance, mark, findings)
    if said is not None:
        _judge(*said, model, mark, server, findings)


async def _ask_real(
    session: aiohttp.ClientSession, server: Server, chance: random.Random, mark: str, findings: Findings
) -> None:
    prompt, streamed = chance.choice(list(server.known)), chance.random() < SHARE_STREAMED
    said = await _said(session, server, _to_real(prompt, streamed), chance, mark, findings)
    if said is not None:
        _, raw, by = said
        findings.must(by == REAL, f"{mark}: asked {REAL}, answered by {by}")
        findings.must(
            _content(raw) == server.known[prompt], f"{mark}: {REAL} answered differently than without load: {raw!r}"
        )
        findings.answered_by_real += 1


async def _ask_real_without_load(session: aiohttp.ClientSession, server: Server) -> None:
    """Keep the real engine's answer to each prompt before the load begins."""
    for prompt in PROMPTS.values():
        async with session.post(f"{server.url}/v1/chat/completions", json=_to_real(prompt, streamed=False)) as response:
            raw = await response.read()
            if response.status != 200:
                raise SystemExit(f"the real engine did not answer: {response.status} {raw[:300]!r}")
            server.known[prompt] = _content(raw)


def _to_real(prompt: str, streamed: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": REAL, "stream": streamed, "messages": messages, "temperature": 0, "max_tokens": 8}


def _content(raw: bytes) -> str:
    """The text of an answer, whole or streamed."""
    lines = [line.removeprefix("data: ") for line in raw.decode().splitlines() if not line.startswith(":")]
    choices = [json.loads(line)["choices"] for line in lines if line.startswith("{")]
    parts = [one.get("delta") or one.get("message") or {} for choice in choices for one in choice]
    return "".join(part.get("content") or "" for part in parts)


async def _said(
    session: aiohttp.ClientSession,
    server: Server,
    body: dict[str, Any],
    chance: random.Random,
    mark: str,
    findings: Findings,
) -> tuple[int, bytes, str] | None:
    """Status, body and expert of an answer; None after an error, which must be a documented one."""
    pause = 0.3 if chance.random() < SHARE_SLOW else 0.0
    headers = {"x-request-timeout": str(REAL_TIMEOUT_SECONDS)} if body["model"] == REAL else {}
    raw, status, by = b"", 0, ""
    try:
        async with session.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as response:
            status, by = response.status, response.headers.get("x-coe-expert", "")
            async for piece in response.content.iter_any():
                raw += piece
                await asyncio.sleep(pause)
    except (aiohttp.ClientError, OSError) as error:
        broken_off = status == 200 and isinstance(error, aiohttp.ClientPayloadError)
        findings.must(broken_off, f"{mark}: {type(error).__name__} instead of an answer")
        findings.outcomes["broken off after its first byte"] += 1
        return None
    code = _error_code(raw)
    if code is not None:
        findings.must(code in CODES, f"{mark}: an undocumented error: {status} {code}")
        findings.outcomes[f"{status} {code}" if status != 200 else f"{code} at the end of a stream"] += 1
        return None
    return status, raw, by


def _judge(status: int, raw: bytes, by: str, model: str, mark: str, server: Server, findings: Findings) -> None:
    """The answer must be the right expert's own, to this very request."""
    text = "\n".join(line for line in raw.decode().splitlines() if not line.startswith(":"))  # without keep-alives
    owner = by if b": coe " not in raw else _owner(text, server)  # headers were sent before the expert was known
    findings.must(status == 200, f"{mark}: {status} without an error: {text[:200]}")
    findings.must(model in ("auto", owner), f"{mark}: asked {model}, answered by {owner}")
    findings.must(mark in text, f"{mark}: the answer belongs to another request")
    findings.must(_owner(text, server) == owner, f"{mark}: this is not the answer of {owner}: {text[:200]}")
    findings.answered += 1


def _owner(text: str, server: Server) -> str:
    """The expert that answered: an engine process returns a digest of its weights, a simulated engine its name."""
    signs = {**server.digests, **{name: f'"model": "{name}"' for name in (*SIMULATED, REMOTE)}}
    return next((name for name, sign in signs.items() if sign in text), "no known expert")


def _error_code(raw: bytes) -> str | None:
    """The code of an error body, or of the error event that ends a stream."""
    last = raw.strip().rpartition(b"data: ")[2]
    try:
        found = json.loads(last)
        return str(found["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return None


async def _saboteur(server: Server, chance: random.Random, ends: float, findings: Findings) -> None:
    """Kill an engine, or freeze one, every few seconds."""
    faults = 0
    while time.monotonic() < ends:
        await asyncio.sleep(chance.uniform(2.0, 5.0))
        faults += 1
        at_real = server.has_real and faults % FAULTS_FOR_EACH_OF_REAL == 0
        engines = server.real_engines() if at_real else server.engines()
        if engines:
            what = chance.choice((signal.SIGKILL, signal.SIGSTOP))
            with suppress(ProcessLookupError):
                os.kill(chance.choice(engines), what)
                done = "killed" if what is signal.SIGKILL else "frozen"
                findings.faults[f"real vLLM {done}" if at_real else f"stand-in {done}"] += 1


async def _reloads(session: aiohttp.ClientSession, server: Server, ends: float, findings: Findings) -> None:
    """Reload a good and a damaged artifact in turn: the damaged one must be refused, and the good one stays."""
    turn = 0
    while time.monotonic() < ends:
        await asyncio.sleep(2.0)
        turn += 1
        kind, expected = ("good", 200) if turn % 2 else ("damaged", 409)
        _point(server.folder / "router", server.folder / kind)
        async with session.post(f"{server.url}/admin/reload") as response:
            findings.reloads[f"{kind} artifact (status {response.status})"] += 1
            said = await response.text()
            findings.must(response.status == expected, f"a {kind} artifact: {response.status} {said[:200]}")
    _point(server.folder / "router", server.folder / "good")


async def _all_is_up(session: aiohttp.ClientSession, server: Server) -> None:
    ends = time.monotonic() + QUIET_WITHIN_SECONDS
    while time.monotonic() < ends:
        with suppress(aiohttp.ClientError, OSError):
            async with session.get(f"{server.url}/healthz") as response:
                if response.status == 200:
                    return
        assert server.process.poll() is None, (server.folder / "server.log").read_text()[-3000:]
        await asyncio.sleep(0.2)
    raise SystemExit(f"the server was not ready within {QUIET_WITHIN_SECONDS:g} s")


async def _all_is_quiet(session: aiohttp.ClientSession, server: Server, findings: Findings) -> None:
    """No lease and no queued request is left. Requests to a frozen engine end once its health check has failed."""
    ends = time.monotonic() + QUIET_WITHIN_SECONDS
    while True:
        async with session.get(f"{server.url}/admin/experts") as response:
            experts: list[dict[str, Any]] = await response.json()
        held = sum(one["leases"] for one in experts), sum(one["queued"] for one in experts)
        if held == (0, 0) or time.monotonic() > ends:
            break
        await asyncio.sleep(0.5)
    findings.must(held == (0, 0), f"{held[0]} leases and {held[1]} waiting requests are left")


@contextmanager
def _running(folder: Path, artifact: Path, vllm: Path | None, hands_over: bool) -> Iterator[Server]:
    digests = {name: _make_model(folder / name, number) for number, name in enumerate(PROCESSES)}
    shutil.copytree(artifact, folder / "good")
    if hands_over:
        _calibrate(folder / "good/manifest.json")
    shutil.copytree(folder / "good", folder / "damaged")
    manifest = folder / "damaged/manifest.json"
    manifest.write_text(manifest.read_text()[:-100])
    _point(folder / "router", folder / "good")
    port, remote_port = free_port(), free_port()
    settings = _settings(folder, port, remote_port)
    if hands_over:
        settings["router"]["handover"] = {"at_most": 2, "margin": -0.5, "score_per_second": 0.0}
    if vllm is not None:
        _add_real(settings, folder, vllm)
    (folder / "serve.yaml").write_text(yaml.safe_dump(settings))
    command = (str(Path(sys.executable).with_name("coe")), "serve", str(folder / "serve.yaml"))
    remote = subprocess.Popen((sys.executable, str(MISBEHAVING_REMOTE), str(remote_port)))
    try:
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            urls = (f"http://127.0.0.1:{one}" for one in (port, remote_port))
            yield Server(process, *urls, folder, digests, vllm is not None)
        finally:
            _end(process)
    finally:
        _end(remote)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _settings(folder: Path, port: int, remote_port: int) -> dict[str, Any]:
    timing = {"start_seconds": 0.5, "wake_seconds": 0.05, "sleep_seconds": 0.05, "ttft_seconds": 0.02}
    simulated = {"engine": "simulated", "weights_bytes": "64MiB", "tokens_per_second": 200, **timing}
    real = {"engine": "vllm", "kv_cache": "32MiB"}
    return {
        "http": {"port": port, "shutdown_seconds": 20},
        "router": {"artifact": str(folder / "router")},
        "memory": {"device": "200MiB", "host": "2GiB"},
        "scheduling": {"max_wait_seconds": 2, "max_generation_seconds": 10, "queue_limit": 64, "max_concurrency": 16},
        "vllm": {
            "command": [sys.executable, str(STAND_IN)],
            "platform": "cpu",
            "process_memory": "128MiB",
            "start_timeout_seconds": 10,  # an engine may be frozen while it starts, and the next one waits for it
            "log_directory": str(folder / "logs"),
        },
        "state_directory": str(folder / "state"),
        "experts": [
            *({"name": name, "model": str(folder / name), **real} for name in PROCESSES),
            *({"name": name, **simulated} for name in SIMULATED),
            {"name": REMOTE, "engine": "remote", "base_url": f"http://127.0.0.1:{remote_port}/v1", "model": REMOTE},
        ],
    }


def _calibrate(manifest: Path) -> None:
    """Let low log-probabilities mean a wrong answer, so that every unsure one is handed over."""
    curve = {"tokens": 4, "intercept": -3.0, "certainty": 1.5, "score": 0.0}
    curves = [curve | {"alone_intercept": -3.0, "alone_certainty": 1.5}]
    told = json.loads(manifest.read_text()) | {"certainty": dict.fromkeys((*PROCESSES, *SIMULATED), curves)}
    manifest.write_text(json.dumps(told))


def _add_real(settings: dict[str, Any], folder: Path, vllm: Path) -> None:
    """An expert on real vLLM; its process takes far more memory and time than a stand-in's."""
    shutil.copytree(REAL_MODEL, folder / REAL)
    settings["memory"]["host"] = "6GiB"
    settings["vllm"] |= {
        "command": [sys.executable, str(EITHER), str(vllm.absolute()), str(STAND_IN)],
        "start_timeout_seconds": REAL_START_SECONDS,
    }
    args = {"max_model_len": 256}
    settings["experts"].append(
        {"name": REAL, "engine": "vllm", "model": str(folder / REAL), "kv_cache": "32MiB", "args": args}
    )


def _make_model(folder: Path, number: int) -> str:
    """Write weights of its own for this model; returns their digest, which an engine that loaded them answers with."""
    folder.mkdir()
    weights = random.Random(number).randbytes(32 * MIB)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    return hashlib.sha256(weights).hexdigest()


def _point(link: Path, target: Path) -> None:
    """Replace the link in one step."""
    fresh = link.with_name("next")
    fresh.symlink_to(target)
    fresh.replace(link)


def _processes(folder: Path) -> list[tuple[int, list[str]]]:
    """Every process with the folder in its arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(str(folder) in word for word in words):
                    found.append((int(entry.name), words))
    return found


def _text(options: argparse.Namespace, findings: Findings, memory: tuple[int, int]) -> str:
    verdict = "Every promise was kept." if not findings.wrong else "NOT kept:"
    real = options.vllm is not None
    room = f"{'one real vLLM, ' if real else ''}room for three of the {'five' if real else 'four'}"
    lines = [
        "## Faults",
        "",
        f"`python benchmarks/faults.py --seconds {options.seconds:g} --clients {options.clients}"
        f"{' --vllm VLLM' if real else ''}{' --handover' if options.handover else ''}`: two engine processes that"
        " speak vLLM's protocol,",
        f"two simulated engines, {room}, and a misbehaving remote server, which counts its requests.",
        "",
        "| outcome | times |",
        "|---|---|",
        f"| the right expert's whole answer | {findings.answered:,} |",
        *([f"| the same from real vLLM, word for word | {findings.answered_by_real:,} |"] if real else []),
        *(f"| {outcome} | {count:,} |" for outcome, count in sorted(findings.outcomes.items())),
        "",
        f"Engines: {_counts(findings.faults) or 'no faults'}. Reloads: {_counts(findings.reloads)}. "
        f"Resident memory {memory[0] / MIB:.1f} MiB after the warm-up, {memory[1] / MIB:.1f} at the end "
        f"(medians of {_LOOKS} seconds). The remote server: {_counts(findings.remote)}.",
        "",
        findings.health,
        "",
        *([f"{findings.handovers:,} unsure answers were handed over.", ""] if options.handover else []),
        verdict,
        *(f"- {sentence}" for sentence in findings.wrong[:50]),
    ]
    return "\n".join(lines)


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{what} {count} times" for what, count in sorted(counted.items()))


if __name__ == "__main__":
    main()
