"""Warnings about a configuration: valid settings that can never take effect, or are probably not meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coe_server.cache.costs import Costs
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier, bytes_in, mib
from coe_server.config.nodes import unencrypted
from coe_server.config.schema import ServerConfig
from coe_server.http.serving import Decides
from coe_server.keys import Key
from coe_server.routing.decision import GENERAL
from coe_server.routing.router import Router


def dead_configuration(
    config: ServerConfig, router: Decides, experts: Sequence[Expert], capacity: Bytes, keys: Sequence[Key]
) -> list[str]:
    """Warnings: valid settings that can never take effect, or are probably not meant; one sentence each."""
    return [
        *lifetimes(experts),
        *dangers(config),
        *_preloads(experts, capacity),
        *without_effect(config),
        *_limits(config),
        *_keys(keys, router),
        *(_routing(router, config) if isinstance(router, Router) else ()),
    ]


def lifetimes(experts: Sequence[Expert]) -> Iterator[str]:
    """Warnings about ttl_seconds: shorter than the moves that it causes, or never applied; a sentence each."""
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
            known = "measured" if expert.costs else "estimated"
            yield (
                f"experts.{expert.name}.ttl_seconds: {expert.ttl_seconds:g} s is less than the move to "
                f"{below} and back takes ({seconds:.1f} s, {known}): it will be loaded and unloaded all the time"
            )


def dangers(config: ServerConfig) -> Iterator[str]:
    """Warnings about security: settings that give models or clients more rights than needed; a sentence each."""
    for expert in config.experts:
        for danger in expert.dangers():
            yield f"experts.{expert.name}.{danger}"
    yield from unencrypted(config.nodes)
    if config.role == "node" and config.http.tls is None and not config.http.is_loopback:
        yield (
            f"http.tls: is not set, and http.host is {config.http.host}: the node key and all prompts cross the network"
            " unencrypted; set http.tls, or use a network that encrypts"
        )


def _preloads(experts: Sequence[Expert], capacity: Bytes) -> Iterator[str]:
    used = Bytes()
    for expert in experts:
        goal = min(expert.preload, expert.pin, key=lambda tier: tier.depth)
        if goal is Tier.DISK or expert.remote:
            continue
        needs = [bytes_in(expert.engine.footprint, goal, seat) for seat in expert.seats]
        need = next((one for one in needs if (used + one).fits(capacity)), needs[0])
        if not (used + need).fits(capacity):
            free = capacity - used
            yield (
                f"experts.{expert.name}.preload: too little memory is left (needs {mib(need.device)} of device and "
                f"{mib(need.host)} of host memory; {mib(free.device)} and {mib(free.host)} are free)"
            )
            continue
        used = used + need


def without_effect(config: ServerConfig) -> Iterator[str]:
    """Warnings about settings of experts that never take effect, or name a missing program or model."""
    for expert in config.experts:
        for setting in expert.without_effect():
            yield f"experts.{expert.name}.{setting}"


def _limits(config: ServerConfig) -> Iterator[str]:
    limits = config.scheduling
    if limits.queue_limit > limits.queue_limit_total:
        total = limits.queue_limit_total
        yield f"scheduling.queue_limit: {limits.queue_limit} is never reached, since queue_limit_total is {total}"
    if config.keys.open and config.http.is_loopback:
        yield (
            f"keys.open: {config.http.host} is a loopback address, so this only allows requests without"
            " a key and with any Host header, which web pages can exploit; set http.allowed_hosts instead"
        )
    if config.router is not None and config.router.residency_tolerance > 0 and len(config.experts) == 1:
        yield "router.residency_tolerance: has no effect with one expert"


def _keys(keys: Sequence[Key], router: Decides) -> Iterator[str]:
    for key in keys:
        for name in sorted((key.objectives or frozenset()) - set(router.objectives)):
            yield f"keys.file: key '{key.name}' may ask for objective '{name}', which the router does not serve"
        if key.experts == frozenset():
            yield f"keys.file: key '{key.name}' may use no expert"


def _routing(router: Router, config: ServerConfig) -> Iterator[str]:
    yield from _unreachable(router, config)
    for name, entry in router.artifact.manifest.objectives.items():
        if entry.shipped:
            yield from _disobeyed_pins(router, name)
            if entry.forced is not None:
                yield f"objective '{name}' is served only because training was forced: {entry.forced}"
        else:
            yield f"objective '{name}' is not served: {entry.refusal or 'training did not ship it'}"
    embeds = router.artifact.manifest.features.embedded_before_routing
    if config.router is not None and config.router.embeddings is not None and not embeds:
        yield "router.embeddings: is never used; the artifact's features need no embeddings"


def _unreachable(router: Router, config: ServerConfig) -> Iterator[str]:
    for expert in config.experts:
        if expert.name not in router.expert_names:
            yield f"experts.{expert.name}: the router does not know it; it answers only requests for its name"
        elif all(expert.name not in _chosen(router, one) | _drawn(router, one) for one in router.objectives):
            but = "; with soft mixing some prompts may still go to it" if _is_soft(router) else ""
            yield f"experts.{expert.name}: no category maps to it under any served objective{but}"


def _is_soft(router: Router) -> bool:
    return router.artifact.manifest.mode == "soft"


def _disobeyed_pins(router: Router, objective: str) -> Iterator[str]:
    manifest = router.artifact.manifest
    for category, expert in router.artifact.pins(objective).items():
        if expert not in manifest.objectives[objective].experts or expert in manifest.bans.get(category, ()):
            yield (
                f"mapping.json: '{category}' is pinned to '{expert}', which objective '{objective}' may not use: "
                "the pin has no effect"
            )


def _chosen(router: Router, objective: str) -> set[str]:
    """The experts to which an objective maps categories, fallback and pins included."""
    entry = router.artifact.manifest.objectives[objective]
    return {*router.artifact.mapping[objective].values(), *router.artifact.pins(objective).values(), entry.fallback}


def _drawn(router: Router, objective: str) -> set[str]:
    """The experts that exploration draws for some category: none if it is off, and none where one is pinned."""
    manifest, pinned = router.artifact.manifest, router.artifact.pins(objective)
    if router.exploration == "off":
        return set()
    if manifest.routes is not None:
        return {name for route in manifest.routes.values() if len(route.experts) > 1 for name in route.experts}
    open_to_all = [one for one in (*manifest.categories, GENERAL) if one not in pinned]
    among = manifest.objectives[objective].experts
    return {name for name in among if any(name not in manifest.bans.get(one, ()) for one in open_to_all)}
