"""The simulator's waits for a trace that a real server played, from the durations measured in that run."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load_client import Seen
from coe_server.build.experts import build_experts
from coe_server.cache.policy import OURS, Limits
from coe_server.cache.tiers import Bytes
from coe_server.config.schema import ServerConfig, load_config
from coe_server.engines.engine import Footprint
from coe_server.simulation.simulator import Scenario, SimulatedExpert, Timing, simulate
from coe_server.simulation.traces import Request, Trace

MEDIAN_OF = {
    "start": {("disk", "device")},
    "wake": {("host", "device")},
    "sleep": {("device", "host")},
    "stop": {("host", "disk"), ("device", "disk")},
}


def predicted_waits(
    config: Path, answered: list[Seen], moves: list[dict[str, Any]], held: dict[str, dict[str, int]]
) -> list[float]:
    """The simulator's waits, sorted, from median durations of the run: the expert's own, or else of all experts."""
    settings = load_config(config)
    requests = tuple(Request(one.arrived, one.tokens, one.expert) for one in sorted(answered, key=lambda s: s.arrived))
    experts = tuple(
        SimulatedExpert(
            expert.name,
            footprint(expert.engine.footprint, held[expert.name]),
            timing(expert.name, answered, moves),
            expert.pin,
            expert.preload,
            expert.ttl_seconds,
        )
        for expert in build_experts(settings)
    )
    scenario = Scenario(experts, capacity(settings), Limits(**settings.scheduling.model_dump()))
    return sorted(answer.waited for answer in simulate(scenario, Trace("seen", requests), OURS).answers)


def capacity(settings: ServerConfig) -> Bytes:
    device, host = settings.memory.device, settings.memory.host
    assert isinstance(device, int), "the demo configures bytes, not shares"
    assert isinstance(host, int), "as above"
    return Bytes(device, host)


def footprint(estimate: Footprint, most: dict[str, int]) -> Footprint:
    """The engine's memory as the ledger measured it, or as estimated if it was never started."""
    if not most["device"]:
        return estimate
    return Footprint(
        device_awake=most["device"],
        host_process=most["host"] - estimate.host_image,
        host_image=estimate.host_image,
    )


def timing(expert: str, answered: list[Seen], moves: list[dict[str, Any]]) -> Timing:
    own = [one for one in answered if one.expert == expert]
    speeds = [one.tokens / max(one.finished - one.arrived - one.waited, 1e-3) for one in own or answered]
    seconds = {kind: median_seconds(ends, expert, moves) for kind, ends in MEDIAN_OF.items()}
    return Timing(
        start_seconds=seconds["start"],
        wake_seconds=seconds["wake"],
        sleep_seconds=seconds["sleep"],
        stop_seconds=seconds["stop"],
        ttft_seconds=0.0,
        tokens_per_second=median(speeds),
    )


def median_seconds(ends: set[tuple[str, str]], expert: str, moves: list[dict[str, Any]]) -> float:
    everybodys = [move for move in moves if (move["from"], move["to"]) in ends]
    own = [move["seconds"] for move in everybodys if move["expert"] == expert]
    found = own or [move["seconds"] for move in everybodys]
    return median(found) if found else 0.0
