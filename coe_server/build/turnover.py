"""What a reload does about experts: builds those that come or change, and keeps the service's tables in step."""

from __future__ import annotations

from dataclasses import replace

from coe_server.build.capacity import weights_here
from coe_server.build.experts import (
    build_expert,
    costs_file,
    footprints_file,
    refuse_missing,
    require_vllm,
    surroundings_of,
)
from coe_server.build.service import build_capabilities, build_presets
from coe_server.cache.costs import read_costs
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.cache.turnover import Terms, Turnover
from coe_server.config.diff import ExpertChanges
from coe_server.config.schema import ServerConfig
from coe_server.engines.engine import TellsLength
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.measured_footprints import read_footprints
from coe_server.errors import ReloadRefused
from coe_server.events import Event
from coe_server.http.serving import Service


def build_turnover(news: ExpertChanges, running: ServerConfig, wanted: ServerConfig, capacity: Bytes) -> Turnover:
    """What the cache is to do, with the engines of new and changed experts. Raises ConfigError or ReloadRefused."""
    _refuse_first_weights(news, running, wanted)
    require_vllm(wanted)
    own = {one.name: one for one in wanted.with_engines}
    before = {one.name: one for one in running.with_engines}
    surroundings = surroundings_of(wanted, refuse_missing, read_footprints(footprints_file(wanted)))
    surroundings = replace(surroundings, whole_device_bytes=lambda: int(0.9 * max(capacity.cards, default=0)))
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
    return Turnover(
        added=tuple(replace(built[name], costs=costs.get(name, {})) for name in news.added if name in own),
        changed=tuple(built[name] for name in news.restarted),
        removed=tuple(name for name in news.removed if name in before),
        adjusted=terms,
        bases=wanted.bases,
        order=tuple(own),
    )


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

    def take_over(self, news: ExpertChanges, turnover: Turnover, wanted: ServerConfig) -> None:
        """Begin the turnover. Raises NoRoom; then nothing has changed."""
        service, models = self._service, wanted.engine_models
        if not any(news.as_json().values()):
            return
        come_back = {name for name in news.added if name in service.cache.slots}  # before they were gone
        service.cache.take_over(turnover)
        for name in news.added:
            service.presets.pop(name, None)  # of a preset that had the name before
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
                nodes.learn(name)  # an expert of nodes had the name of one of this front, which answered

    def _forget(self, name: str) -> None:
        service = self._service
        service.leaving.discard(name)
        for table in (service.engine_models, service.presets, service.capabilities, service.lengths, self._models):
            table.pop(name, None)


def _lengths(experts: list[Expert] | tuple[Expert, ...]) -> dict[str, TellsLength]:
    return {one.name: one.engine for one in experts if isinstance(one.engine, VllmEngine)}
