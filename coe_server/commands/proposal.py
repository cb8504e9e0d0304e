"""Pure: found models and a machine -> the experts of a first configuration, each with a KV cache that its card has
room for, or with the reason why it cannot run here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from coe_server.commands.machine_here import LLAMA, VLLM, MachineHere
from coe_server.commands.models_here import FoundModel
from coe_server.config.types import require_alias, require_served_name
from coe_server.engines.engine import Footprint
from coe_server.engines.hub import gib
from coe_server.engines.settings import VllmSettings
from coe_server.engines.vllm.args import ArgValue
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.footprint import estimated_footprint

_TOKENS = 32_768  # of a KV cache: one long request, or sixteen of 2,000 tokens at a time
_CACHE_SHARE = 6  # at most a sixth of a card, so that several experts fit on it
_STEP, _LEAST_CACHE = 256 << 20, 512 << 20
_UNKNOWN_TOKEN_BYTES = 128 << 10  # for an 8 B model with grouped heads
_CONTEXTS = (8192, 4096, 2048)  # of llama-server, which allocates the whole context at its start
# llama.cpp's memory beside weights and cache: on a card the CUDA context and the buffers of a step.
_BUFFERS = {"cuda": 1 << 30, "cpu": 256 << 20}
_WIDTHS = (1, 2, 4, 8)
_UNIT = 64 << 20


@dataclass(frozen=True, slots=True)
class Proposed:
    """One expert: its entry in `experts`, a remark for people, and why it is left out (if it is)."""

    entry: Mapping[str, Any]
    told: str
    left_out: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.entry["name"])


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that experts may use: of the largest card (without one: of RAM), and of host memory."""

    device: int
    host: int


def memory_of(machine: MachineHere, models: Iterable[FoundModel]) -> dict[str, str]:
    """The section `memory`. Without a card an engine that cannot sleep needs no host memory beside its own."""
    sleeps = VLLM in machine.programs and any(one.form == "safetensors" for one in models)
    return {"device": "auto", "host": "auto"} if machine.cards or sleeps else {"device": "70%", "host": "10%"}


def room_of(machine: MachineHere, memory: Mapping[str, str]) -> Room:
    """The bytes of that section on this machine now."""
    if machine.cards:
        return Room(max(card.room_bytes for card in machine.cards), machine.host_room)
    device = 0.3 if memory["device"] == "auto" else 0.7
    return Room(int(device * machine.ram_bytes), machine.host_room)


def propose(models: Sequence[FoundModel], machine: MachineHere, room: Room) -> list[Proposed]:
    """An expert for each model, with unique names and aliases."""
    taken = {"auto"}
    found = []
    for model in models:
        name = _free_name(model.name, taken)
        make = _llama if model.form == "gguf" else _vllm
        found.append(make(model, name, machine, room))
    return list(_with_free_aliases(found, models, taken))


def _vllm(model: FoundModel, name: str, machine: MachineHere, room: Room) -> Proposed:
    entry: dict[str, Any] = {"name": name, "engine": "vllm", "model": model.model}
    fitting = next(_fitting(model, machine, room), None)
    least = _footprint(model, machine, _LEAST_CACHE, {}, can_sleep=False)
    told = f"{gib(model.size_bytes)} of weights, {model.told}"
    if VLLM not in machine.programs:
        return Proposed(entry, told, "the program vllm is not on PATH")
    if fitting is None:
        where = "the largest card has" if machine.cards else "experts may take"
        if least.host > room.host:
            return Proposed(entry, told, f"needs {gib(least.host)} of host memory, of {gib(room.host)}")
        return Proposed(entry, told, f"needs {gib(least.device_awake)} of device memory; {where} {gib(room.device)}")
    width, kv_bytes, sleeps = fitting
    args: dict[str, Any] = {"tensor_parallel_size": width} if width > 1 else {}
    tokens = kv_bytes * width // (model.token_bytes or _UNKNOWN_TOKEN_BYTES)
    if model.embeds:
        args["runner"] = "pooling"
    elif model.token_bytes and (longest := min(tokens // 1024 * 1024, model.context_tokens or tokens)):
        args["max_model_len"] = longest
        told += f"; a KV cache of {tokens:,} tokens"
    entry |= {"args": args} if args else {}
    entry["kv_cache"] = f"{kv_bytes >> 20}MiB"
    if not sleeps:
        entry["sleep"] = False
    return Proposed(entry, told)


def _fitting(model: FoundModel, machine: MachineHere, room: Room) -> Iterator[tuple[int, int, bool]]:
    """Width, KV cache on each card and whether it sleeps, the best first."""
    for width in _WIDTHS:
        if width > 1 and (width > len(machine.cards) or len({card.total_bytes for card in machine.cards}) > 1):
            return
        args: dict[str, ArgValue] = {"tensor_parallel_size": width} if width > 1 else {}
        for sleeps in (True, False):
            need = _footprint(model, machine, _LEAST_CACHE, args, sleeps)
            if need.device_awake <= room.device and need.host <= room.host:
                yield width, _cache_bytes(model, width, room.device, room.device - need.device_awake), sleeps


def _cache_bytes(model: FoundModel, width: int, device: int, spare: int) -> int:
    """Bytes for the tokens, as far as they fit on a card. `spare`: bytes left beside the smallest cache."""
    wanted = _up(_TOKENS * (model.token_bytes or _UNKNOWN_TOKEN_BYTES) // width, _STEP)
    most = min(device // _CACHE_SHARE, _LEAST_CACHE + spare) // _STEP * _STEP
    return max(_LEAST_CACHE, min(wanted, most))


def _footprint(
    model: FoundModel, machine: MachineHere, kv_bytes: int, args: Mapping[str, ArgValue], can_sleep: bool
) -> Footprint:
    """The server's estimate before the first start."""
    launch = VllmLaunch(
        name="found",
        model=model.model,
        kv_cache_bytes=kv_bytes,
        log_directory=Path(),
        platform=machine.platform,
        args=args,
        can_sleep=can_sleep,
        process_bytes=VllmSettings().process_memory,
        weights_bytes=max(1, model.size_bytes),
    )
    return estimated_footprint(launch)


def _llama(model: FoundModel, name: str, machine: MachineHere, room: Room) -> Proposed:
    told = f"{gib(model.size_bytes)}, {model.told}"
    found = next(
        ((tokens, size) for tokens in _CONTEXTS if (size := _llama_bytes(model, machine, tokens)) <= room.device),
        None,
    )
    tokens, size = found or (_CONTEXTS[-1], _llama_bytes(model, machine, _CONTEXTS[-1]))
    tokens = min(tokens, model.context_tokens or tokens)
    program = machine.programs.get(LLAMA)
    words = [shlex.quote(program.path if program else LLAMA), "-m {model} --port {port} --api-key {api_key}"]
    words += ["--alias {name}", f"-c {tokens}", *(["-ngl 99"] if machine.cards else ())]
    entry: dict[str, Any] = {"name": name, "engine": "command", "model": model.model}
    if model.embeds:
        entry |= {"command": " ".join([*words, "--embedding"]), "endpoints": ["embeddings"]}
    else:
        entry |= {"command": " ".join(words), "canary": "completion", "context_tokens": tokens}
    entry["device_bytes"] = f"{size >> 20}MiB"
    if program is None:
        return Proposed(entry, told, "the program llama-server is not on PATH")
    if found is None:
        where = "the largest card has" if machine.cards else "experts may take"
        return Proposed(entry, told, f"needs {gib(size)} of device memory; {where} {gib(room.device)}")
    return Proposed(entry, told)


def _llama_bytes(model: FoundModel, machine: MachineHere, tokens: int) -> int:
    """Estimated memory of the program, which is measured once it runs."""
    tokens = min(tokens, model.context_tokens or tokens)
    cache = tokens * (model.token_bytes or _UNKNOWN_TOKEN_BYTES)
    return _up(model.size_bytes + cache + _BUFFERS[machine.platform], _UNIT)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _free_name(known_as: str, taken: set[str]) -> str:
    """Reserve a valid, unique expert name from the last part of a name, with a number if necessary."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", known_as.rpartition("/")[2].lower()).strip("-._")[:56] or "model"
    name = next(one for one in chain((plain,), (f"{plain}-{number}" for number in count(2))) if one not in taken)
    taken.add(name)
    return require_served_name(name)


def _with_free_aliases(found: Iterable[Proposed], models: Iterable[FoundModel], taken: set[str]) -> Iterator[Proposed]:
    """The experts with aliases: their models' names elsewhere, so that clients need no change."""
    for one, model in zip(found, models, strict=True):
        free = tuple(name for name in model.other_names if name not in taken and _is_alias(name))
        taken.update(free)
        yield Proposed(one.entry, one.told, one.left_out, free)


def _is_alias(name: str) -> bool:
    try:
        return bool(require_alias(name)) and name.partition(":")[0] != "auto"
    except ValueError:
        return False
