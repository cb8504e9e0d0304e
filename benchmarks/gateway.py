"""What a gateway costs: direct, the floor, ours, LiteLLM's auto router, NeMo Switchyard; same upstream, same core.

    python -m benchmarks.gateway --artifact artifacts/demo-router --litellm VENV --switchyard VENV
    python -m benchmarks.gateway --artifact artifacts/demo-router --seconds 3 --no-write     # ours alone, short

Needs wrk, nginx, gcc and node. A peer without its environment is left out. One gateway at a time is measured on the
second core; wrk (or node) and the upstream share the first. The floor is `pass_through.py`. The floor and ours run at
the same time and are measured in turn in every round, because only their ratio is stable on a busy machine. The tables
are written to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.document import document
from tests.ports import free_port

HERE = Path(__file__).resolve().parent
PROMPTS = HERE.parent / "demo/data/held_out.prompts.jsonl"
EXPERTS = ("french", "generalist", "python", "sql", "units")
STREAMS, TOKENS, PACE = 100, 250, 50
GATEWAY_CORE, LOAD_CORE = "1", "0"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "upstream",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


@dataclass(frozen=True, slots=True)
class Gateway:
    """A server under test: its command, its port, and the model name that makes it route.

    `named` is a model that needs no routing; it gets a row of its own.
    """

    name: str
    command: tuple[str, ...]
    port: int
    model: str
    environment: dict[str, str] = field(default_factory=dict)
    named: str | None = None

    @property
    def rows(self) -> Iterator[tuple[str, str]]:
        """The name of each row and the model that its requests name."""
        yield self.name, self.model
        if self.named is not None:
            yield f"{self.name}, by name", self.named


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk measured, and the gateway's processor time."""

    requests: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    failed: int
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def per_core(self) -> float | None:
        """Requests for each second of processor time: the capacity of one core, independent of other load."""
        return self.requests / self.cpu_seconds if self.cpu_seconds > 0 else None

    @classmethod
    def of_rounds(cls, rounds: Sequence[Load]) -> Load:
        """The sum of the rounds' requests, and the median of their percentiles."""
        return cls(
            requests=sum(one.requests for one in rounds),
            seconds=sum(one.seconds for one in rounds),
            p50_ms=median(one.p50_ms for one in rounds),
            p90_ms=median(one.p90_ms for one in rounds),
            p99_ms=median(one.p99_ms for one in rounds),
            failed=sum(one.failed for one in rounds),
            cpu_seconds=sum(one.cpu_seconds for one in rounds),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One gateway's figures."""

    name: str
    alone: Load
    busy: Load
    resident_mib: float

    @classmethod
    def of_rounds(cls, rounds: Sequence[Row]) -> Row:
        alone, busy = Load.of_rounds([one.alone for one in rounds]), Load.of_rounds([one.busy for one in rounds])
        return cls(rounds[0].name, alone, busy, max(one.resident_mib for one in rounds))


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="coe-gateway-") as made, _nginx(Path(made)) as upstream:
        folder = Path(made)
        rows = [_measure("direct", _direct(upstream), folder, options.seconds)]
        rows += _in_turns([_floor(upstream), *_ours_all(options, upstream, folder)], folder, options)
        for peer in _peers(options, upstream, folder):
            rows += _in_turns([peer], folder, options)
        streams = _streams(options, folder)
    text = _text(options.seconds, rows, streams)
    print(text)
    if not options.no_write:
        document("gateway", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="the demo's router, as `make demo` trains it")
    parser.add_argument("--litellm", type=Path, help="environment with litellm[proxy]")
    parser.add_argument("--switchyard", type=Path, help="environment with nemo-switchyard")
    parser.add_argument("--another", type=Path, help="environment with this project and another Python: a second row")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each of the two loads in each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the loads, and of the streams")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md as it is")
    return parser.parse_args()


def _direct(upstream: int) -> Gateway:
    return Gateway("direct", (), upstream, "upstream")


def _floor(upstream: int) -> Gateway:
    port = free_port()
    program = (sys.executable, "-m", "benchmarks.pass_through", str(port), f"http://127.0.0.1:{upstream}")
    return Gateway("floor", program, port, "upstream", {"PYTHONPATH": str(HERE.parent)})


def _ours_all(options: argparse.Namespace, upstream: int, folder: Path) -> Iterator[Gateway]:
    yield _ours(options.artifact, upstream, folder)
    if options.another is not None:
        yield _ours(options.artifact, upstream, folder, options.another)


def _peers(options: argparse.Namespace, upstream: int, folder: Path) -> Iterator[Gateway]:
    if options.litellm is not None:
        yield _litellm(options.litellm, upstream, folder)
    if options.switchyard is not None:
        yield _switchyard(options.switchyard, upstream, folder)


def _ours(artifact: Path, upstream: int, folder: Path, environment: Path | None = None) -> Gateway:
    """Our server with five remote experts, all on the same upstream; the router routes every prompt among them."""
    port = free_port()
    expert = {"engine": "remote", "base_url": f"http://127.0.0.1:{upstream}/v1", "model": "upstream"}
    settings = {
        "http": {"port": port},
        "router": {"artifact": str(artifact.resolve())},
        "scheduling": {"max_concurrency": 256, "queue_limit": 256},
        "experts": [{"name": name, **expert} for name in EXPERTS],
    }
    name = "ours" if environment is None else f"ours, {_interpreter(environment)}"
    coe = Path(sys.executable).with_name("coe") if environment is None else environment / "bin/coe"
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return Gateway(name, (str(coe), "serve", str(file)), port, "auto", named=EXPERTS[0])


def _interpreter(environment: Path) -> str:
    command = (str(environment / "bin/python"), "-c", "import platform; print('Python', platform.python_version())")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def _litellm(environment: Path, upstream: int, folder: Path) -> Gateway:
    port, base = free_port(), f"http://127.0.0.1:{upstream}/v1"
    tiers = {"SIMPLE": "small", "MEDIUM": "mid", "COMPLEX": "big", "REASONING": "think"}
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": base, "api_key": "none"}}
        for name in tiers.values()
    ]
    router = {
        "model": "auto_router/complexity_router",
        "complexity_router_config": {"tiers": tiers},
        "complexity_router_default_model": "mid",
    }
    models.append({"model_name": "smart-router", "litellm_params": router})
    file = folder / "litellm.yaml"
    settings = {"dangerously_permit_weak_or_unset_master_key": True}  # no keys on either side
    file.write_text(yaml.safe_dump({"model_list": models, "general_settings": settings}))
    command = (str(environment / "bin/litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port))
    return Gateway("LiteLLM", command, port, "smart-router", {"LITELLM_LOCAL_MODEL_COST_MAP": "True"})


def _switchyard(environment: Path, upstream: int, folder: Path) -> Gateway:
    """Switchyard's stage router in the native server of its package."""
    port, file = free_port(), folder / "switchyard.toml"
    file.write_text(
        f"""schema_version = 1
[llm_clients.upstream]
format = "openai_chat"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key_env = "UPSTREAM_KEY"
[targets.capable]
id = "capable"
llm_client = "upstream"
[targets.efficient]
id = "efficient"
llm_client = "upstream"
[routes.smart]
id = "smart"
type = "stage_router"
capable_target = "capable"
efficient_target = "efficient"
picker = "efficient_first"
confidence_threshold = 0.5
"""
    )
    serve = (
        f"import signal; from switchyard_rust.server import Server; s = Server({str(file)!r}, {port}); signal.pause()"
    )
    return Gateway(
        "Switchyard", (str(environment / "bin/python"), "-c", serve), port, "smart", {"UPSTREAM_KEY": "none"}
    )


def _in_turns(gateways: Sequence[Gateway], folder: Path, options: argparse.Namespace) -> list[Row]:
    """Start all of them, then measure each once in every round, one after the other."""
    with ExitStack() as running:
        pids = {one.name: running.enter_context(_up(one, folder)).pid for one in gateways}
        measured: dict[str, list[Row]] = {}
        for _ in range(options.rounds):
            for gateway in gateways:
                for name, model in gateway.rows:
                    row = _measure(name, gateway, folder, options.seconds, pids[gateway.name], model)
                    measured.setdefault(name, []).append(row)
    return [Row.of_rounds(rounds) for rounds in measured.values()]


@contextmanager
def _up(gateway: Gateway, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / f"{gateway.name}.log"
    with _running(gateway.command, gateway.environment, log, GATEWAY_CORE) as process:
        _wait_for(gateway.port, process, log)
        yield process


def _measure(
    name: str, gateway: Gateway, folder: Path, seconds: float, pid: int | None = None, model: str | None = None
) -> Row:
    bodies = folder / f"{name}.bodies"
    bodies.write_text("".join(_bodies(model or gateway.model)))
    print(f"{name}: warming up", file=sys.stderr, flush=True)
    _wrk(gateway.port, bodies, 8, min(3.0, seconds), pid)
    print(f"{name}: one at a time, then 32 at a time", file=sys.stderr, flush=True)
    alone = _wrk(gateway.port, bodies, 1, seconds, pid)
    busy = _wrk(gateway.port, bodies, 32, seconds, pid)
    return Row(name, alone, busy, _resident_mib(pid) if pid is not None else 0.0)


def _bodies(model: str) -> Iterator[str]:
    for line in PROMPTS.read_text().splitlines():
        messages = [{"role": "user", "content": json.loads(line)["prompt"]}]
        yield json.dumps({"model": model, "messages": messages, "max_tokens": 16}) + "\n"


def _wrk(port: int, bodies: Path, connections: int, seconds: float, pid: int | None) -> Load:
    before = _cpu_seconds(pid) if pid is not None else 0.0
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = (
        *("taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"),
        *("--timeout", "30s", "-s", str(HERE / "in_wrk/chat.lua"), url, "--", str(bodies)),
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Load(**found, cpu_seconds=_cpu_seconds(pid) - before if pid is not None else 0.0)


def _streams(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """100 streams at 50 tokens a second, read directly and through a gateway: the delay of the same token compared.

    Every round goes once through the floor and once through ours.
    """
    source = free_port()
    program = folder / "token_source"
    subprocess.run(("gcc", "-O2", "-o", str(program), str(HERE / "in_c/token_source.c")), check=True)
    floor, ours = _floor(source), _ours(options.artifact, source, folder)
    with (
        _running((str(program), str(source), str(TOKENS), str(PACE)), {}, folder / "source.log", LOAD_CORE),
        _up(floor, folder) as passing,
        _up(ours, folder) as process,
    ):
        print("streams", file=sys.stderr, flush=True)
        spent: dict[str, list[float]] = {"floor": [], "ours": []}
        for _ in range(options.rounds):
            _, us = _streamed(source, floor, passing.pid)
            spent["floor"].append(us)
            found, us = _streamed(source, ours, process.pid)
            spent["ours"].append(us)
    return found | {f"{name}_us_per_chunk": median(values) for name, values in spent.items()}


def _streamed(source: int, gateway: Gateway, pid: int) -> tuple[dict[str, Any], float]:
    """The delays of one round, and the gateway's processor time in microseconds a chunk."""
    before, rounds = _cpu_seconds(pid), 1
    client = (
        *("taskset", "-c", LOAD_CORE, "node", str(HERE / "in_node/streams.mjs"), f"http://127.0.0.1:{source}/v1"),
        *(f"http://127.0.0.1:{gateway.port}/v1", gateway.model, str(STREAMS), str(rounds)),
    )
    done = subprocess.run(client, capture_output=True, text=True, timeout=300, check=True)
    chunks = STREAMS * (TOKENS + 1) * (rounds + 1)  # the client reads all streams once before it measures
    found: dict[str, Any] = json.loads(done.stdout)
    return found, 1e6 * (_cpu_seconds(pid) - before) / chunks


@contextmanager
def _nginx(folder: Path) -> Iterator[int]:
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000; default_type application/json; client_max_body_size 0;
client_body_temp_path {folder};
server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{json.dumps(ANSWER)}'; }} }} }}
"""
    )
    command = ("nginx", "-p", str(folder), "-c", str(file))
    with _running(command, {}, folder / "nginx.out", LOAD_CORE) as process:
        _wait_for(port, process, folder / "nginx.log")
        yield port


@contextmanager
def _running(
    command: tuple[str, ...], environment: dict[str, str], log: Path, core: str
) -> Iterator[subprocess.Popen[bytes]]:
    if shutil.which(command[0]) is None:
        raise SystemExit(f"there is no program {command[0]}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ("taskset", "-c", core, *command), stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 180.0) -> None:
    """Until something answers HTTP there."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"{process.args!r} does not answer:\n{log.read_text()[-3000:]}")


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _tree(int(child)))]


def _cpu_seconds(pid: int) -> float:
    total = 0
    for one in _tree(pid):
        total += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return total / TICKS_PER_SECOND


def _resident_mib(pid: int) -> float:
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in _tree(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _text(seconds: float, rows: list[Row], streams: dict[str, Any]) -> str:
    direct, floor, ours, named = rows[:4]
    lines = [
        "## Gateway",
        "",
        f"`python -m benchmarks.gateway --artifact artifacts/demo-router --seconds {seconds:g} --litellm VENV"
        " --switchyard VENV`. Upstream:",
        "nginx with one fixed answer. Load: wrk with the demo's 300 held-out prompts. One gateway at a time runs on",
        "the second core, wrk and nginx on the first.",
        "",
        "- floor: `benchmarks/pass_through.py`, in which uvicorn and aiohttp pass the same bytes through.",
        "- ours: routes every prompt with the demo's router among five remote experts, logs a line for each request",
        "  and counts its metrics. by name: the request names its expert, so nothing is routed.",
        "- LiteLLM routes with its complexity router, Switchyard with its stage router. No gateway checks keys.",
        "- added: p50 less the direct p50.",
        "- per core: requests for each second of processor time of the gateway's processes, at 32 at a time.",
        "",
        f"Python {platform.python_version()}, {os.cpu_count()} cores shared with other work (the load average was "
        f"{os.getloadavg()[1]:.1f}).",
        "",
        "| | p50 ms, one at a time | added | p99 | requests/s, 32 at a time | p50 ms | p99 | per core | MiB | failed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        per_core = f"{row.busy.per_core:,.0f}" if row.busy.per_core else ""
        added = f"{row.alone.p50_ms - direct.alone.p50_ms:.2f}" if row is not direct else ""
        cells = (
            *(row.name, f"{row.alone.p50_ms:.2f}", added, f"{row.alone.p99_ms:.2f}", f"{row.busy.rate:,.0f}"),
            *(f"{row.busy.p50_ms:.2f}", f"{row.busy.p99_ms:.2f}", per_core),
            *(f"{row.resident_mib:.0f}" if row.resident_mib else "", str(row.alone.failed + row.busy.failed)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        *_verdicts(rows, direct, ours),
        *_floor_verdicts(floor, ours, named, streams),
        "",
        *_stream_lines(streams),
    ]
    return "\n".join(lines)


def _verdicts(rows: list[Row], direct: Row, ours: Row) -> Iterator[str]:
    added = ours.alone.p50_ms - direct.alone.p50_ms
    yield f"- Added at one request at a time: {added:.2f} ms, goal at most 1.2: {_verdict(added <= 1.2)}."
    megabytes = ours.resident_mib * 1.048576
    yield f"- Resident memory: {megabytes:.0f} MB, goal at most 180: {_verdict(megabytes <= 180)}."
    for row in rows:
        if row.name == "LiteLLM" and row.busy.per_core and ours.busy.per_core:
            times = ours.busy.per_core / row.busy.per_core
            yield f"- Requests per core: {times:.1f} times LiteLLM's, goal at least 5: {_verdict(times >= 5)}."


def _floor_verdicts(floor: Row, ours: Row, named: Row, streams: dict[str, Any]) -> Iterator[str]:
    """Ratios to the floor of the same run."""

    def cpu_us(load: Load) -> float:
        return 1e6 * load.cpu_seconds / load.requests

    for what, mine, least, goal in (
        ("p50 of `auto`, one at a time, ms", ours.alone.p50_ms, floor.alone.p50_ms, 3.0),
        ("p50 by name, one at a time, ms", named.alone.p50_ms, floor.alone.p50_ms, 2.0),
        ("processor time of `auto`, 32 at a time, µs", cpu_us(ours.busy), cpu_us(floor.busy), 4.0),
        ("processor time by name, 32 at a time, µs", cpu_us(named.busy), cpu_us(floor.busy), None),
        ("processor time of a stream's chunk, µs", streams["ours_us_per_chunk"], streams["floor_us_per_chunk"], 2.0),
    ):
        times = mine / least
        goal_text = "" if goal is None else f", goal at most {goal:g}: {_verdict(times <= goal)}"
        yield f"- {what}: {mine:.3g}, floor {least:.3g}, {times:.1f} times{goal_text}."


def _stream_lines(streams: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{STREAMS} streams at {PACE} tokens/s ({streams['added']['chunks']:,} chunks). The delay of a chunk: from its "
        "time stamp by the source until one Node client has it. added: the same token of the same stream, through ours "
        "less direct."
    )
    yield ""
    yield "| ms | p50 | p99 | max |"
    yield "|---|---|---|---|"
    for name in ("direct", "gateway", "added"):
        found = streams[name]
        yield f"| {name.replace('gateway', 'ours')} | {found['p50']:.2f} | {found['p99']:.2f} | {found['max']:.1f} |"
    yield ""
    added = streams["added"]["p99"]
    yield f"- Added at p99: {added:.2f} ms, goal at most 20: {_verdict(added <= 20)}."
    yield f"- Processor time: {streams['ours_us_per_chunk']:.0f} µs a chunk."


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"


if __name__ == "__main__":
    main()
