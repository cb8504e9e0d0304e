"""Three Ray machines with a node each under load, while machines are killed, a node is frozen and the directory dies.

    python -m benchmarks.cluster_faults                            120 seconds, 50 clients, a machine killed every 40 s
    python -m benchmarks.cluster_faults --seconds 600 --clients 200 --every 60 --write

The machines are processes of this one (`ray_machines.py`; needs the extra [ray]), their experts simulated. Every answer
has to be whole and its expert's own, every other a documented error. Exit code 1 if anything promised is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import yaml

from benchmarks.document import document
from benchmarks.faults import CODES
from benchmarks.ray_machines import RayMachines, ray_machines
from tests.ports import free_port

MACHINES = ("box-a", "box-b", "box-c")
EXPERTS = ("french", "python", "sql", "units")
MARK = "COE_CLUSTER_FAULTS"  # in the environment of every process of a run
KEY = {"COE_NODE_KEY": "the-node-key-of-this-benchmark"}
DEADLINE_SECONDS = 30.0
AWAY_SECONDS = 8.0  # from the end of a machine to its return
FROZEN_SECONDS = 10.0
SHARE_STREAMED = 0.5
PAUSE_SECONDS = 4.0  # longest of a client between two requests
UP_SECONDS = 180.0
MOST_NOTICED_SECONDS = 2.0
_LOOK_SECONDS = 0.02


@dataclass(slots=True)
class Findings:
    """What happened, counted; `wrong` is what must not happen, a sentence each."""

    outcomes: Counter[str] = field(default_factory=Counter)
    by_node: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    noticed: dict[str, list[float]] = field(default_factory=lambda: {"killed": [], "frozen": []})
    back: list[float] = field(default_factory=list)  # from the order to start a machine to its node's first request
    wrong: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)  # to nodes, by what came of it

    def must(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.wrong.append(sentence)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a run has: the Ray cluster, the front's URL and the folder of all files."""

    ray: RayMachines
    url: str
    folder: Path

    def coe(self, *words: str) -> str:
        command = [sys.executable, "-m", "coe_server", "cluster", *words, "--address", self.ray.address]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=UP_SECONDS, env={**os.environ, **KEY}
        )
        return done.stdout

    def nodes(self) -> dict[str, Any]:
        """Node -> what the front says of it."""
        with urllib.request.urlopen(f"{self.url}/admin/nodes", timeout=10) as answer:
            return {one["name"]: one for one in json.load(answer)}

    def usable(self, name: str) -> bool:
        return bool(self.nodes().get(name, {"usable": False})["usable"])

    def server_pid(self, name: str) -> int:
        """The process of the machine's node: the child of its keeper."""
        keeper = json.loads(self.coe("status", "--json"))[name]["run"]["keeper_pid"]
        return int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()[0])


def main() -> None:
    options = _options()
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="coe-ray-", dir="/tmp") as made:  # Ray's sockets need a short path
        folder = Path(made)
        with _running(folder) as cluster:
            asyncio.run(_story(cluster, options, findings))
            findings.sent.update(_sent_to_nodes(cluster))
            cluster.coe("down")
        deadline = time.monotonic() + 30.0
        while (left := _left(folder)) and time.monotonic() < deadline:
            time.sleep(0.5)
        findings.must(not left, f"{len(left)} processes are left after the end: {left}")
    text = _text(options, findings)
    print(text)
    if options.write:
        document("cluster faults", text)
    raise SystemExit(1 if findings.wrong else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--every", type=float, default=40.0, help="seconds from one killed machine to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks.md")
    return parser.parse_args()


@contextmanager
def _running(folder: Path) -> Iterator[Cluster]:
    """Three machines, a node on each, and a front that knows them."""
    expert = {"engine": "simulated", "weights_bytes": "1GiB", "start_seconds": 0.5, "wake_seconds": 0.2}
    expert |= {"sleep_seconds": 0.1, "ttft_seconds": 0.2, "tokens_per_second": 40}
    node = {
        "role": "node",
        "http": {"port": 0, "shutdown_seconds": 5},
        "keys": {"node_key_env": "COE_NODE_KEY"},
        "memory": {"device": "3GiB", "host": "8GiB"},  # three of the four at once
        "log": {"decisions": False},
        "state_directory": str(folder / "{node}"),
        "experts": [{"name": name, **expert} for name in EXPERTS],
    }
    port = free_port()
    (folder / "node.yaml").write_text(yaml.safe_dump(node))
    (folder / "r").mkdir()
    with ray_machines(str(folder / "r"), {**KEY, MARK: str(folder)}) as ray:
        for name in MACHINES:
            ray.add(name)
        cluster = Cluster(ray, f"http://127.0.0.1:{port}", folder)
        print(cluster.coe("up", str(folder / "node.yaml")), flush=True)
        front = {
            "http": {"port": port},
            "log": {"decisions": False},
            "state_directory": str(folder / "front"),
            "experts": [],
            "nodes": {"directory": "ray", "address": ray.address, "api_key_env": "COE_NODE_KEY"},
        }
        (folder / "front.yaml").write_text(yaml.safe_dump(front))
        with (folder / "front.log").open("wb") as log:
            words = [sys.executable, "-m", "coe_server", "serve", str(folder / "front.yaml")]
            environment = {**os.environ, **KEY, MARK: str(folder)}
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        try:
            _until(lambda: all(cluster.usable(name) for name in MACHINES), "the front has three usable nodes")
            yield cluster
        finally:
            process.terminate()
            process.wait(60)


def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + UP_SECONDS
    while True:
        with suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"it did not happen within {UP_SECONDS:g} s: {what}")
        time.sleep(_LOOK_SECONDS)


async def _story(cluster: Cluster, options: argparse.Namespace, findings: Findings) -> None:
    """Clients ask while the faults happen; afterwards all nodes have to be usable again."""
    chance = random.Random(options.seed)
    ends = time.monotonic() + options.seconds
    timeout = aiohttp.ClientTimeout(total=2 * DEADLINE_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
        for number in range(options.clients):
            client = random.Random(chance.random())
            group.create_task(_client(session, cluster.url, client, f"client {number}", ends, findings))
        group.create_task(asyncio.to_thread(_faults, cluster, options, ends, findings))
    findings.must(findings.outcomes["answered"] > 0, "nothing was answered at all")
    await asyncio.to_thread(_until, lambda: all(map(cluster.usable, MACHINES)), "all nodes are usable at the end")


async def _client(
    session: aiohttp.ClientSession, url: str, chance: random.Random, name: str, ends: float, findings: Findings
) -> None:
    count = 0
    while time.monotonic() < ends:
        count += 1
        expert, streamed = chance.choice(EXPERTS), chance.random() < SHARE_STREAMED
        text = f"{name} asks for the {count}th time"
        began = time.monotonic()
        outcome = await _asked(session, url, expert, text, streamed, findings)
        findings.outcomes[outcome] += 1
        took = time.monotonic() - began
        findings.must(took < DEADLINE_SECONDS + 5, f"{name}: {outcome} after {took:.1f} s, beyond its deadline")
        await asyncio.sleep(PAUSE_SECONDS * chance.random())


async def _asked(
    session: aiohttp.ClientSession, url: str, expert: str, text: str, streamed: bool, findings: Findings
) -> str:
    """One request: `answered`, or the code of a documented error."""
    body = {"model": expert, "stream": streamed, "messages": [{"role": "user", "content": text}]}
    headers = {"x-request-timeout": f"{DEADLINE_SECONDS:g}"}
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            node, raw = answer.headers.get("x-coe-node", "none"), await answer.text()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        findings.wrong.append(f"{text}: the front broke off: {error!r}")
        return "broken off"
    said, code = _content(raw, streamed and answer.status == 200)
    if code is not None:
        findings.must(code in CODES, f"{text}: an error that is not documented: {answer.status} {raw[-300:]}")
        return code
    findings.must(said == f"{expert} answers: {text}", f"{text}: {expert} was asked, and this came: {said!r}")
    findings.by_node[node] += 1
    return "answered"


def _content(raw: str, streamed: bool) -> tuple[str, str | None]:
    """The text of an answer, and the code of its error if it has one; a stream without an end has the code `cut`."""
    try:
        if not streamed:
            whole = json.loads(raw)
            if "error" in whole:
                return "", str(whole["error"]["code"])
            return whole["choices"][0]["message"]["content"], None
        events = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: ")]
        parts = [json.loads(event) for event in events if event != "[DONE]"]
    except (ValueError, LookupError):
        return raw, "cut"
    for part in parts:
        if "error" in part:
            return "", str(part["error"]["code"])
    if not events or events[-1] != "[DONE]":
        return raw, "cut"
    return "".join(choice["delta"].get("content") or "" for part in parts for choice in part["choices"]), None


def _faults(cluster: Cluster, options: argparse.Namespace, ends: float, findings: Findings) -> None:
    """A machine killed every so often and brought back; one node frozen, the directory killed twice on the way."""
    begun = time.monotonic()
    turn = 0
    while time.monotonic() + AWAY_SECONDS + 10 < ends:
        name = MACHINES[turn % len(MACHINES)]
        _kill(cluster, name, findings)
        if turn < 2:
            cluster.ray.kill_directory()
            findings.faults["the directory killed"] += 1
        time.sleep(AWAY_SECONDS)
        began = time.monotonic()
        cluster.ray.add(name)
        _until(lambda name=name: cluster.usable(name), f"{name} is back")
        findings.back.append(time.monotonic() - began)
        if turn == 0:
            _freeze(cluster, MACHINES[1], findings)
        turn += 1
        time.sleep(max(0.0, min(begun + turn * options.every, ends) - time.monotonic()))


def _kill(cluster: Cluster, name: str, findings: Findings) -> None:
    """SIGKILL to Ray's processes there; measured from the end of the node's own process."""
    pid = cluster.server_pid(name)
    cluster.ray.kill(name)
    _until(lambda: not Path(f"/proc/{pid}").exists(), "the server ends with its machine")
    _notice(cluster, name, "killed", findings)


def _freeze(cluster: Cluster, name: str, findings: Findings) -> None:
    pid = cluster.server_pid(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        _notice(cluster, name, "frozen", findings)
        time.sleep(FROZEN_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    _until(lambda: cluster.usable(name), f"{name} is usable after its freeze")


def _notice(cluster: Cluster, name: str, kind: str, findings: Findings) -> None:
    began = time.monotonic()
    _until(lambda: not cluster.usable(name), f"{name} is unusable")
    findings.noticed[kind].append(time.monotonic() - began)
    findings.faults[f"a node {kind}"] += 1


def _sent_to_nodes(cluster: Cluster) -> Counter[str]:
    """What came of the requests sent to nodes, by the front's metrics."""
    with urllib.request.urlopen(f"{cluster.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if told := re.match(r'coe_node_requests_total\{.*outcome="(\w+)".*\} ([0-9.e+]+)', line):
            found[told[1]] += int(float(told[2]))
    return found


def _left(folder: Path) -> list[int]:
    """Processes that were started by a run with this folder and are there still."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return found


def _text(options: argparse.Namespace, findings: Findings) -> str:
    errors = {code: count for code, count in findings.outcomes.most_common() if code != "answered"}
    asked = f"--seconds {options.seconds:g} --clients {options.clients} --every {options.every:g}"
    lines = [
        "## Several machines: faults on Ray",
        "",
        f"`python -m benchmarks.cluster_faults {asked}`",
        "",
        f"{options.clients} clients for {options.seconds:g} s on three Ray machines, load {os.getloadavg()[0]:.0f} on"
        f" {os.cpu_count()} cores.",
        "",
        "| | |",
        "|---|---|",
        f"| answered, each by its own expert | {findings.outcomes['answered']:,} |",
        f"| other ends, all documented errors | {sum(errors.values()):,}: {_counted(errors)} |",
        f"| answers by node | {_counted(dict(sorted(findings.by_node.items())))} |",
        f"| sent to nodes, by what came of it | {_counted(findings.sent)} |",
        f"| faults | {_counted(findings.faults)} |",
        *(
            f"| a {kind} node is unused after | {_spread(seconds)} |"
            for kind, seconds in findings.noticed.items()
            if seconds
        ),
        f"| a machine started again has a usable node after | {_spread(findings.back)} |",
        "",
        "Wrong: " + ("nothing." if not findings.wrong else f"{len(findings.wrong)} times."),
        *(f"- {sentence}" for sentence in findings.wrong[:20]),
    ]
    return "\n".join(lines)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "not seen"
    return f"{median(seconds):.2f} s in the median, at most {max(seconds):.2f} s ({len(seconds)} times)"


if __name__ == "__main__":
    main()
