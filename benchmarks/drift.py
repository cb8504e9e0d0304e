"""Drift detection with the demo's router: requests until a new topic is flagged, and false alarms on steady traffic.

Run with `python -m benchmarks.drift`; needs the demo's router (`make demo` trains it). Traffic is drawn from prompts
that the router was not trained on.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.document import document
from coe_server.http.traffic import Traffic, reference_of
from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions, RoutingDecision
from coe_server.routing.router import Router

ROOT = Path(__file__).resolve().parent.parent
ARTIFACT = ROOT / "artifacts/demo-router"
PROMPTS = ROOT / "demo/data/held_out.prompts.jsonl"
LIVES = 5
STEADY_LIVES = 50  # false alarms are rare: fewer servers would show none either way
STEADY, SWITCHED = 20_000, 500


def main() -> None:
    router = Router.load(ARTIFACT)
    by_topic = _decisions(router)
    everything = [one for decisions in by_topic.values() for one in decisions]
    alarms = sum(_flagged(router, seed, [(everything, STEADY)]) is not None for seed in range(STEADY_LIVES))
    lines = [
        "## Drift",
        "",
        f"`python -m benchmarks.drift`, the demo's router, {len(everything)} prompts it was not trained on."
        f" Steady traffic: {alarms} of {STEADY_LIVES} servers flagged anything in {STEADY:,} requests."
        " After 2,000 such requests all are of one topic:",
        "",
        f"| topic | flagged after (requests, {LIVES} servers) |",
        "|---|---|",
    ]
    for topic, decisions in by_topic.items():
        found = [_flagged(router, seed, [(everything, 2000), (decisions, SWITCHED)]) for seed in range(LIVES)]
        lines.append(f"| {topic} | {', '.join('never' if at is None else str(at - 2000) for at in found)} |")
    text = "\n".join(lines)
    print(text)
    if "--keep" in sys.argv:
        document("drift", text)


def _decisions(router: Router) -> dict[str, list[RoutingDecision]]:
    nearby = dict.fromkeys(router.expert_names, Availability("disk", 1.0))
    found = defaultdict(list)
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["category"]].append(router.route(Conversation.of_prompt(row["prompt"]), RouteOptions(), nearby))
    return dict(found)


def _flagged(router: Router, seed: int, phases: list[tuple[list[RoutingDecision], int]]) -> int | None:
    """The number of the request at which drift was flagged; None if it never was."""
    reference = reference_of(artifacts.read_held_out(ARTIFACT), router.artifact.manifest.categories)
    assert reference is not None, "the demo's artifact has out-of-fold predictions"
    traffic, draw, asked = Traffic(reference, router.version), random.Random(seed), 0
    for decisions, count in phases:
        for _ in range(count):
            asked += 1
            traffic.see(draw.choice(decisions))
            if any(traffic.drift.left_band.values()):
                return asked
    return None


if __name__ == "__main__":
    main()
