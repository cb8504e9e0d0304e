"""Pure: machines for the simulator: a made-up one of a given size, or the one that a configuration describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from coe_server.cache.costs import Costs
from coe_server.cache.scheduler import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.engine import Footprint
from coe_server.simulation.simulator import Scenario, SimulatedExpert, Timing

WEIGHTS_BYTES = 15 * 2**30
_ALL_IN_HOST_UP_TO = 20  # experts; of more, half


def expert_names(number: int) -> list[str]:
    """`expert-01`, `expert-02`, ...: as many digits as the last one needs."""
    digits = len(str(number))
    return [f"expert-{position:0{digits}}" for position in range(1, number + 1)]


def made_up_scenario(
    names: Sequence[str], on_device: int | None = None, in_host: int | None = None, limits: Limits | None = None
) -> Scenario:
    """Experts of 15 GiB each with the timing of an 8 B model on a data-centre GPU (see `Timing`).

    `on_device` and `in_host`: how many fit there. By default 2 of up to 5, 3 of up to 20, else 4; and all of up to
    20 fit in host memory, else half. As many as fit there are preloaded to it, the first ones.
    """
    on_device = on_device or (2 if len(names) <= 5 else 3 if len(names) <= 20 else 4)
    in_host = in_host or (len(names) if len(names) <= _ALL_IN_HOST_UP_TO else (len(names) + 1) // 2)
    experts = tuple(
        SimulatedExpert(
            name,
            Footprint(device_awake=WEIGHTS_BYTES, host_image=WEIGHTS_BYTES),
            preload=Tier.HOST if position < in_host else Tier.DISK,
        )
        for position, name in enumerate(names)
    )
    return Scenario(experts, Bytes(on_device * WEIGHTS_BYTES, in_host * WEIGHTS_BYTES), limits or Limits())


def scenario_of(experts: Iterable[Expert], timings: Mapping[str, Timing], capacity: Bytes, limits: Limits) -> Scenario:
    """The experts of a server; those answered elsewhere take no part. Timings: see `timing_of` for what is missing."""
    local = tuple(
        SimulatedExpert(
            expert.name,
            expert.engine.footprint,
            timings.get(expert.name) or timing_of(expert.costs),
            expert.pin,
            expert.preload,
            expert.ttl_seconds,
            max_concurrency=expert.max_concurrency,
        )
        for expert in experts
        if not expert.remote
    )
    return Scenario(local, capacity, limits)


def timing_of(costs: Mapping[str, float]) -> Timing:
    """Moves as an earlier server measured them (`Costs.measured`); what it did not is guessed as the server does."""
    known = Costs(costs)
    return Timing(
        start_seconds=known.move(Tier.DISK, Tier.DEVICE),
        wake_seconds=known.move(Tier.HOST, Tier.DEVICE),
        sleep_seconds=known.move(Tier.DEVICE, Tier.HOST),
        stop_seconds=known.move(Tier.HOST, Tier.DISK),
    )
