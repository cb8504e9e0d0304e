"""What a reload does about experts: builds those that come or change, and keeps the service's tables in step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from coe_server.build.capacity import weights_here
from coe_server.build.experts import (
    build_expert,
    costs_file,
    footprints_file,
    refuse_missing,
    require_vllm,
    surroundings_of,
)
from coe_server.build.router import build_capabilities
from coe_server.build.service import build_presets
from coe_server.cache.costs import read_costs
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.cache.turnover import Terms, Turnover
from coe_server.config.diff import ExpertChanges, restarting
from coe_server.config.schema import ServerConfig
from coe_server.engines.adapter import Adapter
from coe_server.engines.engine import Engine, TellsLength
from coe_server.engines.settings import ExpertSettings, Surroundings
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.footprint import read_footprints
from coe_server.engines.vllm.settings import VllmExpert, check_fit
from coe_server.errors import ReloadRefused
from coe_server.events import Event
from coe_server.http.serving import Service

logger = logging.getLogger(__name__)

EngineOf = Callable[[str], Engine | None]


class Reshaped(NamedTuple):
    """What a reload does: what it tells, what the cache is to do, and which adapters running engines are to have."""

    news: ExpertChanges
    turnover: Turnover
    adapters: tuple[tuple[VllmEngine, tuple[Adapter, ...]], ...]


def build_turnover(
    news: ExpertChanges, running: ServerConfig, wanted: ServerConfig, capacity: Bytes, runs: EngineOf
) -> Reshaped:
    """What is to be done, with the engines of new and changed experts. Raises ConfigError or ReloadRefused.

    `runs`: the running engine of an expert, or None.
    """
    _refuse_first_weights(news, running, wanted)
    require_vllm(wanted)
    own = {one.name: one for one in wanted.with_engines}
    before = {one.name: one for one in running.with_engines}
    surroundings = surroundings_of(wanted, refuse_missing, read_footprints(footprints_file(wanted)))
    surroundings = replace(surroundings, whole_device_bytes=lambda: int(0.9 * max(capacity.cards, default=0)))
    live = dict(_taken_live(news.regrouped, own, surroundings, runs))
    news = restarting(news, {name for name in news.regrouped if name not in live}, order=tuple(own))
    built = {name: build_expert(own[name], surroundings) for name in (*news.added, *news.restarted) if name in own}
    costs = read_costs(costs_file(wanted))
    terms = {
        name: Terms(
            None if own[name].pin == before[name].pin else Tier(own[name].pin or Tier.DISK),
            Tier(own[name].preload or own[name].pin or Tier.DISK),
            own[name].ttl_seconds,
        )
        for name in (*news.adjusted, *news.restarted)
        if name in own
    }
    turnover = Turnover(
        added=tuple(replace(built[name], costs=costs.get(name, {})) for name in news.added if name in own),
        changed=tuple(built[name] for name in news.restarted),
        removed=tuple(name for name in news.removed if name in before),
        adjusted=terms,
        bases=wanted.bases,
        order=tuple(own),
    )
    return Reshaped(news, turnover, tuple(live.values()))


def _taken_live(
    bases: Iterable[str], own: Mapping[str, ExpertSettings], surroundings: Surroundings, runs: EngineOf
) -> Iterator[tuple[str, tuple[VllmEngine, tuple[Adapter, ...]]]]:
    """The bases whose engine takes its adapters of now while it runs, with that engine. Raises ConfigError."""
    for name in bases:
        engine, settings = runs(name), own[name]
        if not isinstance(engine, VllmEngine) or not isinstance(settings, VllmExpert):
            continue
        adapters, room = settings.adapters(engine.launch, surroundings), engine.adapter_room
        why = "it takes no adapters (args.enable_lora)" if room is None else room.why_not(adapters)
        if why is None:
            check_fit(engine.launch, adapters)
            yield name, (engine, adapters)
        else:
            logger.info("%s: starts anew for its adapters: %s", name, why)


def _refuse_first_weights(news: ExpertChanges, running: ServerConfig, wanted: ServerConfig) -> None:
    """Raise ReloadRefused for the first expert that takes memory here: the tiers were sized without looking at it."""
    if weights_here(running) or not weights_here(wanted):
        return
    name = next(one.name for one in wanted.experts if one.weights_here)
    raise ReloadRefused(
        f"experts.{name}: is the first that takes memory of this machine, which is measured at the start; restart"
        " required, nothing was reloaded"
    )


class ServedExperts:
    """Keeps the service's tables in step with the cache: names change at once, what belongs to an engine with it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._models: dict[str, str] = {}  # of names whose engine is still to be replaced
        service.cache.events.subscribe(self._saw)

    @property
    def capacity(self) -> Bytes:
        return self._service.cache.ledger.capacity

    def running_engine(self, name: str) -> Engine | None:
        """The engine that answers what is asked of an expert from now on, if it has a process."""
        slot = self._service.cache.slots[name]
        if slot.successor is not None or slot.leaves or (slot.tier is Tier.DISK and slot.moving is None):
            return None
        return slot.engine

    def take_over(self, reshaped: Reshaped, wanted: ServerConfig) -> None:
        """Begin the turnover. Raises NoRoom; then nothing has changed."""
        news, turnover = reshaped.news, reshaped.turnover
        service, models = self._service, wanted.engine_models
        if not any(news.as_json().values()):
            return
        come_back = {name for name in news.added if name in service.cache.slots}  # before they were gone
        service.cache.roster.take_over(turnover)
        for name in news.added:
            service.presets.pop(name, None)  # of a preset that had the name before
        for engine, adapters in reshaped.adapters:
            engine.take_adapters(adapters)
        for name in [one for one in service.leaving if one not in service.cache.slots]:
            self._forget(name)  # a preset that an earlier reload removed
        service.leaving.difference_update(models)
        service.leaving.update(name for name in news.removed if name in service.engine_models)
        restarts = {
            *news.restarted,
            *come_back,
            *(name for name, base in wanted.bases.items() if base in news.restarted),
        }
        later = {name for name in restarts if name in service.engine_models}
        self._models.update((name, models[name]) for name in later)
        now = {name: service.engine_models[name] if name in later else model for name, model in models.items()}
        others = {name: model for name, model in service.engine_models.items() if name not in now}
        service.engine_models.clear()
        service.engine_models.update(now | others)
        service.presets.update(build_presets(wanted))
        service.capabilities.update(build_capabilities(wanted))
        service.lengths.update(_lengths(turnover.added))

    def _saw(self, event: Event) -> None:
        if event.kind != "expert":
            return
        name, slots = event.fields["expert"], self._service.cache.slots
        if event.fields["change"] == "changed":
            for one in (name, *(one for one, base in slots.bases.items() if base == name)):
                self._service.engine_models[one] = self._models.pop(one, self._service.model_of(one))
            self._service.lengths.pop(name, None)
            self._service.lengths.update(_lengths([slots[name].expert]))
        elif event.fields["change"] == "removed" and slots[name].name == name:
            self._forget(name)
            if (nodes := self._service.nodes) is not None and name in nodes.experts:
                nodes.experts.learn(name)  # an expert of nodes had the name of one of this front, which answered

    def _forget(self, name: str) -> None:
        service = self._service
        service.leaving.discard(name)
        for table in (service.engine_models, service.presets, service.capabilities, service.lengths, self._models):
            table.pop(name, None)


def _lengths(experts: list[Expert] | tuple[Expert, ...]) -> dict[str, TellsLength]:
    return {one.name: one.engine for one in experts if isinstance(one.engine, VllmEngine)}
