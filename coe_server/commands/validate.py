"""What a configuration amounts to before a start: which experts fit where, and what can never take effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from coe_server.cache.costs import Costs
from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.planner import mib
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier, bytes_in
from coe_server.cache.wait_times import turn_seconds, turns_ahead
from coe_server.config.schema import RemoteExpert, ServerConfig, VllmExpert
from coe_server.engines.vllm_args import named
from coe_server.http.serving import Decides
from coe_server.keys import Key
from coe_server.routing.router import Router

GATEWAY_BYTES = 1 << 30  # for the server's own process: about 100 MB, and what large bodies and many streams take


def plan_table(settings: ServerConfig, found: list[Expert], capacity: Bytes) -> Table:
    """What each expert takes in each tier, and the tiers' limits."""
    table = Table("expert", "engine", "device", "host", "sleeps", "pin")
    for expert, expert_settings in zip(found, settings.experts, strict=True):
        need = expert.engine.footprint
        sleeps = "yes" if need.can_sleep else "no"
        pin = "" if expert.pin is Tier.DISK else expert.pin.value
        table.add_row(expert.name, expert_settings.engine, mib(need.device_awake), mib(need.host), sleeps, pin)
    table.add_section()
    table.add_row("limit", "", mib(capacity.device), mib(capacity.host), "", "")
    return table


def container_limit(tiers_bytes: int) -> str:
    """What a container or cgroup around the server must allow, as a sentence; `tiers_bytes` are the tiers' in RAM."""
    least = -(-(tiers_bytes + GATEWAY_BYTES) // 2**20)
    return (
        f"A container's memory limit (COE_MEMORY in compose.yaml, MemoryMax of a unit): at least {least}m, which is "
        f"{mib(tiers_bytes)} for the tiers in RAM and {mib(GATEWAY_BYTES)} for the server itself."
    )


def placement(experts: Sequence[Expert], capacity: Bytes) -> list[str]:
    """How many experts fit on the device at once, and the tier of each when the server is ready; a sentence each."""
    local = [expert for expert in experts if not expert.remote]
    if not local:
        return ["Every expert is remote: nothing is moved here."]
    sizes = sorted(expert.engine.footprint.device_awake for expert in local)
    most, fewest = _how_many(sizes, capacity.device), _how_many(sizes[::-1], capacity.device)
    at_once = f"{fewest}" if most == fewest else f"{fewest} (the largest) to {most} (the smallest)"
    sentences = [f"On the device at once: {at_once} of {len(local)} local experts."]
    never_in_host = [one.name for one in local if not one.engine.footprint.can_sleep]
    if never_in_host:
        sentences.append(f"On the device or on disk, never in host memory: {', '.join(never_in_host)}.")
    for tier in (Tier.DEVICE, Tier.HOST):
        names = [one.name for one in local if min(one.preload, one.pin, key=lambda goal: goal.depth) is tier]
        if names:
            sentences.append(f"In {tier.value} memory when ready: {', '.join(names)}.")
    return sentences


def wait_bound(cache: ExpertCache) -> str:
    """The longest wait for a lease and its parts, as one paragraph."""
    limits, waits = cache.limits, cache.waits
    return (
        f"No request waits longer than {waits.bound_seconds():,.0f} s: max_wait {limits.max_wait_seconds:g} s + "
        f"{_turns(cache)}. "
        f"It is that long because a turn is {limits.queue_limit} queued requests, {limits.max_concurrency} "
        f"at a time, each as long as it may be ({limits.max_generation_seconds:g} s); with answers of "
        f"{waits.usual_answer_seconds:.1f} s, the slowest expert's as measured (or guessed), it would be "
        f"{waits.usual_bound_seconds():,.0f} s.{_with_fan_out(cache)}"
    )


def _with_fan_out(cache: ExpertCache) -> str:
    """A sentence where requests that ask for several answers may make it longer."""
    widest = cache.waits.widest_bound_seconds()
    if widest == cache.waits.bound_seconds():
        return ""
    return (
        f" Requests that ask for several answers at once (n, best_of, lists of prompts; up to "
        f"{cache.limits.max_fan_out}, scheduling.max_fan_out) can make it {widest:,.0f} s."
    )


def _turns(cache: ExpertCache) -> str:
    waits, turn = cache.waits, f"a turn of {turn_seconds(cache.limits):,.0f} s"
    if not waits.sharing:
        return f"{turn}, since no experts share the device"
    switch = f"a switch of {waits.switch_seconds:,.1f} s, {'as measured' if waits.costs_are_measured else 'guessed'}"
    if waits.sharing == 1:
        return f"{turn} and {switch}, for one expert that has the device to itself"
    ahead = f"one for each of the {waits.sharing} experts that share the device and the one under way"
    return f"{turns_ahead(waits.sharing)} x ({turn} and {switch}), {ahead}"


def dead_configuration(
    config: ServerConfig, router: Decides, experts: Sequence[Expert], capacity: Bytes, keys: Sequence[Key]
) -> list[str]:
    """What is allowed and yet can never take effect, or is probably not meant; one sentence each."""
    return [
        *lifetimes(experts),
        *dangers(config),
        *_preloads(experts, capacity),
        *_remote_tiers(config),
        *_replaced_keys(config),
        *_limits(config),
        *_keys(keys, router),
        *(_routing(router, config) if isinstance(router, Router) else ()),
    ]


def _how_many(sizes: Sequence[int], room: int) -> int:
    count = 0
    for size in sizes:
        room -= size
        if room < 0:
            break
        count += 1
    return count


def lifetimes(experts: Sequence[Expert]) -> Iterator[str]:
    """Times to live that are shorter than what they cause, or that never apply; a sentence each."""
    for expert in experts:
        below = Tier.HOST if expert.engine.footprint.can_sleep else Tier.DISK
        costs = Costs(expert.costs)
        seconds = costs.move(Tier.DEVICE, below) + costs.move(below, Tier.DEVICE)
        if expert.ttl_seconds is None:
            continue
        if expert.pin is Tier.DEVICE or expert.remote:
            why = "it is remote" if expert.remote else "the expert is pinned to the device"
            yield f"experts.{expert.name}.ttl_seconds: never applies, {why}"
        elif expert.ttl_seconds < seconds:
            known = "measured" if expert.costs else "guessed"
            yield (
                f"experts.{expert.name}.ttl_seconds: {expert.ttl_seconds:g} s is less than its switch takes, to "
                f"{below} and back ({seconds:.1f} s, {known}): it will be loaded and unloaded all the time"
            )


def dangers(config: ServerConfig) -> Iterator[str]:
    """What gives models or callers more of this machine than an answer needs; a sentence each."""
    for expert in config.experts:
        if not isinstance(expert, VllmExpert):
            continue
        args = named(expert.args)
        key = f"experts.{expert.name}.args"
        if args.get("trust_remote_code") not in {None, False}:
            yield (
                f"{key}.trust_remote_code: Python code that comes with '{expert.model}' runs here as the user of the "
                "engine: it can read and change all files that this user can (models, other engines' memory, the "
                "decision log) and reach every address that this machine can; read it first, and pin args.revision and "
                "args.code_revision to what was read"
            )
        if folder := args.get("allowed_local_media_path"):
            told = f"every caller of '{expert.name}' can have it read any media file in {folder}"
            yield f"{key}.allowed_local_media_path: {told}"


def _preloads(experts: Sequence[Expert], capacity: Bytes) -> Iterator[str]:
    used = Bytes()
    for expert in experts:
        goal = min(expert.preload, expert.pin, key=lambda tier: tier.depth)
        if goal is Tier.DISK or expert.remote:
            continue
        need = bytes_in(expert.engine.footprint, goal)
        if not (used + need).fits(capacity):
            free = capacity - used
            yield (
                f"experts.{expert.name}.preload: no room is left for it ({mib(need.device)} of device and "
                f"{mib(need.host)} of host memory, where {mib(free.device)} and {mib(free.host)} are)"
            )
            continue
        used = used + need


def _remote_tiers(config: ServerConfig) -> Iterator[str]:
    for expert in config.experts:
        if isinstance(expert, RemoteExpert):
            for key in ("pin", "preload"):
                if (tier := getattr(expert, key)) is not None:
                    yield f"experts.{expert.name}.{key}: '{tier}' never applies, it is remote and takes no memory here"


def _replaced_keys(config: ServerConfig) -> Iterator[str]:
    for expert in config.experts:
        if not isinstance(expert, RemoteExpert) or expert.api_key_env is None:
            continue
        if any(name.lower() == "authorization" for name in expert.headers):
            yield f"experts.{expert.name}.api_key_env: is never sent, headers has an Authorization in its place"


def _limits(config: ServerConfig) -> Iterator[str]:
    limits = config.scheduling
    if limits.queue_limit > limits.queue_limit_total:
        total = limits.queue_limit_total
        yield f"scheduling.queue_limit: {limits.queue_limit} is never reached, queue_limit_total is {total}"
    if config.keys.open and config.http.is_loopback:
        yield (
            f"keys.open: {config.http.host} cannot be reached from elsewhere; all that changes is that requests without"
            " a key may ask for any Host, which web pages can make use of (http.allowed_hosts lists some)"
        )
    if config.router is not None and config.router.residency_tolerance > 0 and len(config.experts) == 1:
        yield "router.residency_tolerance: changes nothing, there is one expert"


def _keys(keys: Sequence[Key], router: Decides) -> Iterator[str]:
    for key in keys:
        for name in sorted((key.objectives or frozenset()) - set(router.objectives)):
            yield f"keys.file: key '{key.name}' may ask for objective '{name}', which the router does not serve"
        if key.experts == frozenset():
            yield f"keys.file: key '{key.name}' may use no expert at all"


def _routing(router: Router, config: ServerConfig) -> Iterator[str]:
    yield from _unreachable(router, config)
    for name, entry in router.artifact.manifest.objectives.items():
        if entry.shipped:
            yield from _disobeyed_pins(router, name)
        else:
            yield f"objective '{name}' is not served: {entry.refusal or 'training did not ship it'}"
    embeds = router.artifact.manifest.features.embedded_before_routing
    if config.router is not None and config.router.embeddings is not None and not embeds:
        yield "router.embeddings: is never used, the artifact's features need no embeddings"


def _unreachable(router: Router, config: ServerConfig) -> Iterator[str]:
    for expert in config.experts:
        if expert.name not in router.expert_names:
            yield f"experts.{expert.name}: the router does not know it; it answers only when it is asked for by name"
        elif all(expert.name not in _chosen(router, objective) for objective in router.objectives):
            but = "; under soft mixing single prompts may still go to it" if _is_soft(router) else ""
            yield f"experts.{expert.name}: no category maps to it under any objective that is served{but}"


def _is_soft(router: Router) -> bool:
    return router.artifact.manifest.mode == "soft"


def _disobeyed_pins(router: Router, objective: str) -> Iterator[str]:
    manifest = router.artifact.manifest
    for category, expert in router.artifact.pins(objective).items():
        if expert not in manifest.objectives[objective].experts or expert in manifest.bans.get(category, ()):
            yield (
                f"mapping.json: '{category}' is pinned to '{expert}' under '{objective}', which may not take it: "
                "the pin is never obeyed"
            )


def _chosen(router: Router, objective: str) -> set[str]:
    """The experts mapped to under an objective, fallback and pins included."""
    entry = router.artifact.manifest.objectives[objective]
    return {*router.artifact.mapping[objective].values(), *router.artifact.pins(objective).values(), entry.fallback}
