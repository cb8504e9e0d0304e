"""The machine that a plan is for: this one, or one that `--machine` describes. Reads sizes, starts nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from coe_server.build.experts import amount_of, build_capacity, card_limit, divided
from coe_server.cache.planner import mib
from coe_server.config.schema import ServerConfig
from coe_server.config.types import parse_byte_count
from coe_server.engines.cards import DeviceBytes
from coe_server.engines.hub import gib
from coe_server.errors import ConfigError

GRAMMAR = "'[Nx]SIZE[+[Nx]SIZE...],host=SIZE': '24GiB,host=64GiB', '4x80GiB,host=512GiB', without a GPU 'host=16GiB'"


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of each card, none on a machine without a GPU, and of host memory that can be had."""

    cards: tuple[int, ...]
    host: int


@dataclass(frozen=True, slots=True)
class Rooms:
    """What of a machine experts may take: bytes of each card (of RAM in its place without a GPU) and of host memory."""

    cards: tuple[int, ...]
    host: int
    told: str  # the machine in words
    there: tuple[int, ...]  # bytes that each card has; as `cards` where it is not known


def parse_machine(text: str) -> Machine:
    """Raises ConfigError, which shows how it is written."""
    cards, _, host = text.replace(" ", "").partition("host=")
    if not host:
        raise ConfigError(f"--machine: '{text}' has no host=SIZE; it is written {GRAMMAR}")
    sizes: list[int] = []
    for part in filter(None, cards.removesuffix(",").split("+")):
        match = re.fullmatch(r"(?:(\d{1,3})x)?(\d.*)", part)
        if match is None:
            raise ConfigError(f"--machine: '{part}' is no card; it is written {GRAMMAR}")
        sizes.extend([_size(match[2], text)] * int(match[1] or 1))
    return Machine(tuple(sizes), _size(host, text))


def for_machine(config: ServerConfig, machine: Machine) -> ServerConfig:
    """The configuration as that machine would run it."""
    if config.vllm.platform != "auto":
        return config
    platform = "cuda" if machine.cards else "cpu"
    return config.model_copy(update={"vllm": config.vllm.model_copy(update={"platform": platform})})


def rooms(config: ServerConfig, machine: Machine | None) -> Rooms:
    """What the configuration gives to experts. Raises ConfigError where it asks for more than there is."""
    if machine is None:
        capacity = build_capacity(config)
        return Rooms(capacity.cards, capacity.host, "this machine", capacity.cards)
    if not machine.cards:
        shares = tuple(divided(config.memory.device, machine.host, 0.3, config.memory.cards or 1))
        host = amount_of(config.memory.host, machine.host, 0.5)
        _refuse_more_host(sum(shares) + host, machine.host, "memory: device and host ask")
        return Rooms(shares, host, f"a machine without a GPU and with {gib(machine.host)} of RAM", shares)
    host = amount_of(config.memory.host, machine.host, 0.8)
    _refuse_more_host(host, machine.host, "memory.host: asks")
    cards = tuple(card_limit(config.memory.device, DeviceBytes(size, 0)) for size in machine.cards)
    return Rooms(cards, host, f"{_told(machine.cards)} and {gib(machine.host)} of host memory", machine.cards)


def _refuse_more_host(wanted: int, there: int, asks: str) -> None:
    if wanted > there:
        raise ConfigError(f"{asks} for {mib(wanted)} of RAM and only {mib(there)} are there; lower it")


def _told(cards: tuple[int, ...]) -> str:
    if len(cards) == 1:
        return f"one card of {gib(cards[0])}"
    kinds = [f"{cards.count(size)} of {gib(size)}" for size in dict.fromkeys(cards)]
    return f"{len(cards)} cards of {gib(cards[0])}" if len(kinds) == 1 else f"{len(cards)} cards ({', '.join(kinds)})"


def _size(word: str, text: str) -> int:
    try:
        size = parse_byte_count(word)
    except ValueError as error:
        raise ConfigError(f"--machine: '{text}': {error}") from error
    assert isinstance(size, int), "neither a share nor auto"
    return size
