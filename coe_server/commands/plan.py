"""The plan of a configuration on a machine: experts loaded together, KV tokens, waits, and hints.

Footprints are measured ones if there are any, else estimates. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coe_server.build.capacity import platform_of
from coe_server.build.experts import surroundings_of
from coe_server.cache.costs import Costs, slowest_way_down
from coe_server.cache.placement import Demand, Placement, kept_by_sleepers, place, used_by_loaded
from coe_server.cache.seats import Card
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Tier
from coe_server.commands.machine import Rooms
from coe_server.config.schema import ServerConfig
from coe_server.engines.command import CommandExpert
from coe_server.engines.hub import gib, hub_config
from coe_server.engines.model_size import downloaded_folder, read_config, token_bytes
from coe_server.engines.settings import ExpertSettings
from coe_server.engines.vllm.command import hub_source
from coe_server.engines.vllm.settings import VllmExpert
from coe_server.errors import ConfigError

_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_FITS_ITSELF = ("auto", -1)  # values of max_model_len
_NCCL_BYTES = 700 << 20  # kept asleep by each rank of several, beyond the residue on one card
_UNEVEN_SHARE = 1.02  # norms and padding are replicated on each rank


@dataclass(frozen=True, slots=True)
class Planned:
    """One local expert in the plan."""

    demand: Demand
    kv_bytes: int  # of its device memory on each card; 0 if unknown
    kv_is_own: bool  # set by its own `kv_cache`
    token_bytes: int | None
    longest_tokens: int | None  # longest context, if every layer caches all of it
    shortens: bool = (
        False  # vLLM takes a shorter context where the KV cache holds no more, instead of refusing to start
    )
    size_is_known: bool = True  # else it takes whole cards

    @property
    def kv_tokens(self) -> int | None:
        return self.kv_bytes // self.token_bytes if self.token_bytes and self.kv_bytes else None


@dataclass(frozen=True, slots=True)
class Plan:
    """All memory figures of `coe validate`."""

    experts: tuple[Planned, ...]
    rooms: Rooms
    found: Placement

    @property
    def demands(self) -> tuple[Demand, ...]:
        return tuple(one.demand for one in self.experts)

    @property
    def fits(self) -> bool:
        return not self.found.left_out


def without_width(settings: ExpertSettings) -> ExpertSettings:
    """The expert as if it used one card; its share per card is computed afterwards."""
    if not isinstance(settings, VllmExpert):
        return settings
    args = {key: value for key, value in settings.args.items() if key.replace("-", "_") not in _PARALLEL}
    return settings.model_copy(update={"args": args})


def planned(settings: ExpertSettings, expert: Expert, config: ServerConfig) -> Planned:
    """What the plan needs to know of an expert: its memory and, for vLLM, how it is split over cards.

    `expert` is built from `without_width(settings)`.
    """
    need = expert.engine.footprint
    demand = Demand(
        name=expert.name,
        awake=need.device_awake,
        asleep=need.device_asleep,
        host=need.host,
        can_sleep=need.can_sleep,
        width=1 if isinstance(settings, VllmExpert) else settings.cards_taken,
        pin=expert.pin,
        preload=expert.preload,
        allowed=_allowed(settings),
    )
    if not isinstance(settings, VllmExpert):
        known = not isinstance(settings, CommandExpert) or settings.device_bytes is not None
        return Planned(demand, 0, False, None, None, size_is_known=known)
    tensor, pipeline, copies = (_whole(settings.args, key) for key in _PARALLEL)
    kv_bytes = settings.kv_cache or config.vllm.kv_cache
    if (width := tensor * pipeline * copies) > 1:
        weights = need.device_awake - kv_bytes - need.device_asleep
        residue = need.device_asleep + (_NCCL_BYTES if need.device_asleep else 0)
        share = round(weights / (tensor * pipeline) * _UNEVEN_SHARE)
        host = need.host_process * width + need.host_image * copies
        demand = replace(demand, width=width, awake=share + kv_bytes + residue, asleep=residue, host=host)
    model = _model_config(settings, config)
    text = model.get("text_config", model)
    value_bytes = 1.0 if "fp8" in str(_option(settings.args, "kv_cache_dtype")) else 2.0
    given = _option(settings.args, "max_model_len")
    shortens = given in _FITS_ITSELF or (given is None and platform_of(config) == "cuda")
    longest = text.get("max_position_embeddings") if given in (None, *_FITS_ITSELF) else given
    windows = text.get("sliding_window") and text.get("use_sliding_window", True)
    per_token = token_bytes(model, value_bytes, tensor)
    return Planned(
        demand,
        kv_bytes,
        settings.kv_cache is not None,
        per_token // pipeline if per_token else None,
        longest if isinstance(longest, int) and not windows else None,
        shortens,
    )


def _allowed(settings: ExpertSettings) -> frozenset[int] | None:
    """The cards that it names by index. A UUID tells nothing of another machine: then it may lie on any."""
    named = settings.cards or ["any"]
    indices = frozenset(name for name in named if isinstance(name, int))
    return indices if len(indices) == len(set(named)) else None


def make_plan(experts: Sequence[Planned], rooms: Rooms) -> Plan:
    found = place([one.demand for one in experts], _cards(rooms), rooms.host, rooms.cards)
    return Plan(tuple(experts), rooms, found)


def _cards(rooms: Rooms) -> list[Card]:
    return [Card(index, size) for index, size in enumerate(rooms.there)]


def headline(plan: Plan) -> str:
    """One sentence: does it fit?"""
    sizes = [*map(gib, plan.rooms.cards)]
    usable = f"{sizes[0]} each" if len(sizes) > 1 and len(set(sizes)) == 1 else ", ".join(sizes)
    room = f"{plan.rooms.told} ({usable} and {gib(plan.rooms.host)} usable)"
    count = f"{len(plan.experts)} local experts" if len(plan.experts) != 1 else "the local expert"
    if not plan.experts:
        return "Fits: every expert is remote, no weights move here."
    if plan.fits:
        return f"Fits: {count} on {room}."
    some = f"{len(plan.found.left_out)} of " if len(plan.experts) > 1 else ""
    return f"Does not fit: {some}{count} on {room}."


def together(plan: Plan) -> Iterator[str]:
    """Sentences: the experts loaded at the same time, and the tiers of the others; none without local experts."""
    loaded, asleep = list(plan.found.loaded), list(plan.found.asleep)
    on_disk = [one.name for one in plan.demands if one.name not in {*loaded, *asleep}]
    if loaded:
        yield f"Loaded together: {', '.join(loaded)} ({len(loaded)} of {len(plan.experts)})."
    if asleep:
        sizes = [size for size in kept_by_sleepers(plan.found, plan.demands).values() if size]
        kept = f"; together they keep {' and '.join(dict.fromkeys(map(gib, sizes)))} of a card" if sizes else ""
        yield f"Beside them asleep in host memory: {', '.join(asleep)}{kept}."
    if on_disk:
        yield f"On disk: {', '.join(on_disk)}."


def typical_wait(experts: Sequence[Expert]) -> tuple[float, float]:
    """Seconds to load an expert on an idle server: from host memory, and from disk."""
    local = [Costs(one.costs) for one in experts if not one.remote]
    down = max(map(slowest_way_down, local), default=0.0)
    wake = max((one.move(Tier.HOST, Tier.DEVICE) for one in local), default=0.0)
    return down + wake, down + max((one.move(Tier.DISK, Tier.DEVICE) for one in local), default=0.0)


def as_json(plan: Plan, wait: Mapping[str, float] | None, told: Sequence[str]) -> dict[str, Any]:
    """The JSON of `coe validate --json`; bytes and seconds."""
    cards = _cards(plan.rooms)
    used, kept = used_by_loaded(plan.found, plan.demands), kept_by_sleepers(plan.found, plan.demands)
    return {
        "fits": plan.fits,
        "cards": [
            {"room": size, "awake": used[index], "asleep": kept[index]} for index, size in enumerate(plan.rooms.cards)
        ],
        "host": plan.rooms.host,
        "experts": [
            {
                "name": one.demand.name,
                "width": one.demand.width,
                "seats": one.demand.seats(cards),
                "device_awake": one.demand.awake,
                "device_asleep": one.demand.asleep,
                "host": one.demand.host,
                "kv_tokens": one.kv_tokens,
                "left_out": plan.found.left_out.get(one.demand.name),
            }
            for one in plan.experts
        ],
        "awake_together": list(plan.found.loaded),
        "wait": None if wait is None else dict(wait),
        "mistakes": [],
        "hints": list(told),
    }


def _model_config(settings: VllmExpert, config: ServerConfig) -> dict[str, Any]:
    """The model's config.json; empty if unavailable. Only token counts depend on it."""
    stripped = without_width(settings)
    assert isinstance(stripped, VllmExpert), "the same expert"
    source = hub_source(stripped.launch(surroundings_of(config)))
    if found := read_config(Path(settings.model)):
        return found
    folder = downloaded_folder(source.model, source.environment, source.revision)
    if folder is not None and (found := read_config(folder)):
        return found
    if settings.weights_bytes is not None:
        return {}
    try:
        return hub_config(source)
    except ConfigError:
        return {}


def _option(args: Mapping[str, Any], name: str) -> Any:
    return next((value for key, value in args.items() if key.replace("-", "_") == name), None)


def _whole(args: Mapping[str, Any], name: str) -> int:
    value = _option(args, name)
    return value if isinstance(value, int) and value > 0 else 1
