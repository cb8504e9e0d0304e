"""The time of one decision over 150 experts that nodes told of, while nodes change and requests are open.

    python -m benchmarks.deciding_over_nodes             # processor time: comparable on a busy machine, too
    python -m benchmarks.deciding_over_nodes --write     # puts the table into docs/benchmarks.md

No server runs: the links of a front hear random snapshots. Before every tenth decision a node tells of three experts
that have changed; twelve requests are open all the time, to other nodes and experts every fiftieth decision.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from benchmarks.document import document
from coe_server.cache.slot import Slot
from coe_server.cluster.connections import Access
from coe_server.cluster.directory import NodeAddress, StaticDirectory
from coe_server.cluster.nodes import Nodes
from coe_server.cluster.snapshot import CapabilitiesOnNode, NodeSnapshot
from coe_server.http.availability import WithNodes
from coe_server.routing import artifact as artifacts
from coe_server.routing.artifact import HeldOut
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import RouteOptions
from coe_server.routing.manifest import ExpertEntry, ScoreEntry
from coe_server.routing.router import Router
from tests.cluster.nodes import asleep, loaded, node, on_disk
from tests.routing.small_artifact import TEXTS, objective, small_artifact

EXPERTS, OPEN, DECISIONS, WARM_UP = 150, 12, 1500, 100
NAMES = [f"expert-{number:03}" for number in range(EXPERTS)]
ON_DEVICE = 4  # of each node
ABLE = CapabilitiesOnNode(8192, {"text": True, "image": False}, True, ("chat", "completions"))
GOAL_MS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        router = _router(Path(folder) / "router")
        rows = [asyncio.run(_row(router, count)) for count in options.nodes]
    text = "\n".join(
        [
            "## Several machines: the cost of deciding",
            "",
            f"`python -m benchmarks.deciding_over_nodes`: {EXPERTS} experts on every node, {ON_DEVICE} of them loaded,",
            f"{OPEN} requests open, {DECISIONS:,} decisions. Milliseconds of processor time. Goal for a decision: p99",
            f"under {GOAL_MS:g} ms.",
            "",
            "| nodes | a decision p50 | p99 | of that: telling the router of all experts p50 | p99 |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
    print(text)
    if options.write:
        document("deciding over nodes", text)


def _router(folder: Path) -> Router:
    chance = random.Random(0)

    def scores() -> dict[str, ScoreEntry]:
        return {name: ScoreEntry(score=chance.random(), prompts=100, standard_error=0.01) for name in NAMES}

    def entry(name: str) -> ExpertEntry:
        size = chance.choice((7.0, 13.0, 70.0))
        facts: dict[str, Any] = {"active_params_b": size, "total_params_b": size, "context_tokens": 8192}
        return ExpertEntry(name=name, vision=False, tools=True, **facts)

    artifact = small_artifact(
        experts=[entry(name) for name in NAMES],
        score={category: scores() for category in TEXTS},
        overall=scores(),
        objectives={"quality": objective(dict.fromkeys((*TEXTS, "general"), NAMES[0]), experts=NAMES)},
    )
    ones = np.ones(2, dtype=np.float32)
    third = np.full((2, len(TEXTS)), 1 / len(TEXTS), dtype=np.float32)
    artifacts.save(artifact, HeldOut(third, np.zeros((2, EXPERTS), dtype=np.float32), ones, ones, ones), None, folder)
    return Router.load(folder, residency_tolerance=0.02)


async def _row(router: Router, count: int) -> str:
    chance = random.Random(0)
    places = [f"node-{number}" for number in range(count)]
    nodes = Nodes(StaticDirectory([NodeAddress(one, "http://127.0.0.1:9") for one in places]), lambda _: Access())
    following = asyncio.create_task(nodes.run())
    await asyncio.sleep(0)
    for number, place in enumerate(places):
        _hear(nodes, place, "snapshot", _snapshot(place, number, count))
    there = SimpleNamespace(expert=SimpleNamespace(on_nodes=True), leaves=False)
    slots = cast("dict[str, Slot]", dict.fromkeys(NAMES, there))
    kept: dict[str, Any] = {}
    talk, asked = Conversation.of_prompt("python function loop " * 20), RouteOptions(objective="quality")
    deciding, telling = [], []
    with ExitStack() as held:
        for number in range(WARM_UP + DECISIONS):
            if number % 50 == 0:
                held.close()
                for _ in range(OPEN):
                    held.enter_context(nodes.sent.sending(chance.choice(places), chance.choice(NAMES)))
            if number % 10 == 0:
                _change(nodes, chance)
            began = time.thread_time()
            router.route(talk, asked, WithNodes({}, nodes, slots, NAMES, kept))
            deciding.append(time.thread_time() - began)
            if number % 10 == 0:
                _change(nodes, chance)
            began = time.thread_time()
            told = WithNodes({}, nodes, slots, NAMES, kept)
            for name in NAMES:
                told[name]
            telling.append(time.thread_time() - began)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    cells = [1000 * float(one) for taken in (deciding, telling) for one in np.percentile(taken[WARM_UP:], (50, 99))]
    return f"| {count} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"


def _snapshot(place: str, number: int, count: int) -> NodeSnapshot:
    def state(at: int, name: str) -> Any:
        is_loaded = at % count == number and at < ON_DEVICE * count
        make = loaded if is_loaded else asleep if at % 2 else on_disk
        return make(name, capabilities=ABLE)

    return node(place, *(state(at, name) for at, name in enumerate(NAMES)), on_device=ON_DEVICE, in_host=EXPERTS // 2)


def _change(nodes: Nodes, chance: random.Random) -> None:
    """A node tells of three experts."""
    place = chance.choice([one.name for one in nodes.known()])
    before = next(one.snapshot for one in nodes.known() if one.name == place)
    assert before is not None
    changed = [replace(before.experts[name], queued=chance.randrange(3)) for name in chance.sample(NAMES, 3)]
    news = replace(before, sequence=before.sequence + 1, experts={one.name: one for one in changed})
    _hear(nodes, place, "changes", news)


def _hear(nodes: Nodes, place: str, event: str, told: NodeSnapshot) -> None:
    nodes._links[place]._hear(event, json.dumps(told.as_json()).encode())


if __name__ == "__main__":
    main()
