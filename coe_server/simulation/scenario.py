"""Pure: machines for the simulator: a made-up one of a given size, or that of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from coe_server.cache.costs import Costs
from coe_server.cache.policy import Limits
from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.engine import Footprint
from coe_server.simulation.simulator import Scenario, SimulatedExpert, Timing

WEIGHTS_BYTES = 15 * 2**30
_ALL_IN_HOST_UP_TO = 20  # experts; beyond that, half of them


def expert_names(number: int) -> list[str]:
    """`expert-01`, `expert-02`, ...: as many digits as the last one needs."""
    digits = len(str(number))
    return [f"expert-{position:0{digits}}" for position in range(1, number + 1)]


def made_up_scenario(
    names: Sequence[str],
    on_device: int | None = None,
    in_host: int | None = None,
    limits: Limits | None = None,
    cards: int = 1,
    wide: int = 0,
) -> Scenario:
    """Experts of 15 GiB each with the timing of an 8 B model on a data-centre GPU (see `Timing`).

    `on_device` and `in_host`: how many fit there, on each card. By default 2 of up to 5, 3 of up to 20, else 4; and all
    of up to 20 fit in host memory, else half. As many as fit there are preloaded to it, the first ones. The first
    `wide` experts take two cards, 15 GiB of each.
    """
    on_device = on_device or (2 if len(names) <= 5 else 3 if len(names) <= 20 else 4)
    in_host = in_host or (len(names) if len(names) <= _ALL_IN_HOST_UP_TO else (len(names) + 1) // 2)
    there = [Card(index, on_device * WEIGHTS_BYTES) for index in range(cards)]
    widths = [2 if position < wide else 1 for position in range(len(names))]
    experts = tuple(
        SimulatedExpert(
            name,
            Footprint(device_awake=WEIGHTS_BYTES, host_image=width * WEIGHTS_BYTES),
            preload=Tier.HOST if position < in_host else Tier.DISK,
            width=width,
            seats=candidate_seats(there, width),
        )
        for position, (name, width) in enumerate(zip(names, widths, strict=True))
    )
    host = (in_host + min(wide, in_host)) * WEIGHTS_BYTES
    return Scenario(experts, Bytes([card.total_bytes for card in there], host), limits or Limits())


def scenario_of(experts: Iterable[Expert], timings: Mapping[str, Timing], capacity: Bytes, limits: Limits) -> Scenario:
    """The scenario of a server's local experts. Missing timings: see `timing_of`."""
    local = tuple(
        SimulatedExpert(
            expert.name,
            expert.engine.footprint,
            timings.get(expert.name) or timing_of(expert.costs),
            expert.pin,
            expert.preload,
            expert.ttl_seconds,
            expert.width,
            expert.seats,
            max_concurrency=expert.max_concurrency,
        )
        for expert in experts
        if not expert.remote
    )
    return Scenario(local, capacity, limits)


def timing_of(costs: Mapping[str, float]) -> Timing:
    """Move durations measured by an earlier server (`Costs.measured`); the rest are the server's estimates."""
    known = Costs(costs)
    return Timing(
        start_seconds=known.move(Tier.DISK, Tier.DEVICE),
        wake_seconds=known.move(Tier.HOST, Tier.DEVICE),
        sleep_seconds=known.move(Tier.DEVICE, Tier.HOST),
        stop_seconds=known.move(Tier.HOST, Tier.DISK),
    )
