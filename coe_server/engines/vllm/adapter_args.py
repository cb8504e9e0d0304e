"""The options of `vllm serve` that a base's adapters decide: their rank, number and names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from coe_server.engines.adapter import Adapter, allowed_rank
from coe_server.engines.vllm.args import ArgValue, named

_MOST_AT_ONCE = 8  # each takes its matrices on the device, for every linear layer of the base
_SPARE = 8  # further adapters that a running engine keeps in host memory; none is reserved
_VLLM_RANK = 16  # of an engine that is told to take adapters and not of which rank (config/lora.py)


class AdapterRoom(NamedTuple):
    """What an engine was started for: the largest rank, adapters in one step, adapters in host memory."""

    rank: int
    at_once: int
    kept: int

    def why_not(self, adapters: Sequence[Adapter]) -> str | None:
        """Why an engine with this room cannot take exactly these adapters while it runs; None if it can."""
        if len(adapters) > self.kept:
            return f"it was started for {self.kept} adapters (max_cpu_loras), these are {len(adapters)}"
        for one in adapters:
            if one.rank > self.rank:
                return f"it was started for ranks up to {self.rank} (max_lora_rank), '{one.name}' has {one.rank}"
        return None

    @property
    def as_args(self) -> dict[str, ArgValue]:
        """Options with which a later start has the same room, whatever adapters there are then."""
        return {
            "enable_lora": True,
            "max_lora_rank": self.rank,
            "max_loras": self.at_once,
            "max_cpu_loras": self.kept,
        }


def room_of(args: Mapping[str, ArgValue], adapters: Sequence[Adapter]) -> AdapterRoom | None:
    """The room of an engine that starts with these options and adapters; None if it takes none."""
    given = named(args)
    if not adapters and given.get("enable_lora") is not True:
        return None
    rank = rank_of(args, adapters) if adapters or "max_lora_rank" in given else _VLLM_RANK
    at_once = max(1, slots_of(args, adapters))
    kept = given.get("max_cpu_loras")
    spare = max(len(adapters) + _SPARE, at_once) if adapters else at_once
    return AdapterRoom(rank, at_once, kept if isinstance(kept, int) else spare)


def contradiction(args: Mapping[str, ArgValue], adapters: Sequence[Adapter]) -> str | None:
    """The given option, with a sentence, that contradicts these adapters; None if none does."""
    given, needed = named(args), max((one.rank for one in adapters), default=0)
    rank = given.get("max_lora_rank")
    if not adapters:
        return None
    if given.get("enable_lora") is False:
        return "enable_lora: false contradicts its adapters (engine: lora); leave it out"
    if given.get("lora_modules") is not None:
        return "lora_modules: adapters are experts of their own (engine: lora); give them there"
    if given.get("runner") == "pooling":
        return "runner: pooling engines answer under no adapter's name here"
    if isinstance(rank, int) and rank < needed:
        return f"max_lora_rank: {rank} is less than its adapters need ({needed}); leave it out"
    return None


def rank_of(args: Mapping[str, ArgValue], adapters: Sequence[Adapter]) -> int:
    """The rank for which the engine reserves matrices."""
    given = named(args).get("max_lora_rank")
    return given if isinstance(given, int) else allowed_rank(max((one.rank for one in adapters), default=1))


def slots_of(args: Mapping[str, ArgValue], adapters: Sequence[Adapter]) -> int:
    """How many adapters can be in one step of the engine; others wait a step, and their matrices are copied."""
    given = named(args).get("max_loras")
    return given if isinstance(given, int) else min(len(adapters), _MOST_AT_ONCE)


def adapter_args(args: Mapping[str, ArgValue], adapters: Sequence[Adapter]) -> dict[str, ArgValue]:
    """All adapters stay in host memory, so that none is read from disk while it answers."""
    if not adapters:
        return {}
    room = room_of(args, adapters)
    assert room is not None, "it has adapters"
    return room.as_args | {"lora_modules": [{"name": one.name, "path": str(one.folder)} for one in adapters]}
