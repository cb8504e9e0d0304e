"""The options of `vllm serve` that a base's adapters decide: their rank, number and names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coe_server.engines.adapter import Adapter, allowed_rank
from coe_server.engines.vllm.args import ArgValue, named

_MOST_AT_ONCE = 8  # each takes its matrices on the device, for every linear layer of the base


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
    slots = slots_of(args, adapters)
    return {
        "enable_lora": True,
        "max_lora_rank": rank_of(args, adapters),
        "max_loras": slots,
        "max_cpu_loras": max(len(adapters), slots),
        "lora_modules": [{"name": one.name, "path": str(one.folder)} for one in adapters],
    }
