"""The machine of a plan: this one, or the one that `--machine` describes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from coe_server.build.capacity import (
    amount_of,
    build_capacity,
    card_limit,
    for_each_card,
    platform_of,
    ram_as_cards,
    refuse_division,
    weights_here,
)
from coe_server.cache.tiers import mib
from coe_server.config.schema import ServerConfig
from coe_server.config.types import parse_byte_count
from coe_server.engines.cards import DeviceBytes, card_readings
from coe_server.engines.hub import gib
from coe_server.errors import ConfigError, EngineError

GRAMMAR = "'[Nx]SIZE[+[Nx]SIZE...],host=SIZE': '24GiB,host=64GiB', '4x80GiB,host=512GiB', without a GPU 'host=16GiB'"


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of each card (none without a GPU) and of available host memory."""

    cards: tuple[int, ...]
    host: int


@dataclass(frozen=True, slots=True)
class Rooms:
    """Bytes that experts may use: of each card (without a GPU: of RAM in its place), and of host memory."""

    cards: tuple[int, ...]
    host: int
    told: str  # the machine in words
    there: tuple[int, ...]  # total bytes of each card; equal to `cards` if unknown, and without a GPU equal


def parse_machine(text: str) -> Machine:
    """Parse the value of `--machine`. Raises ConfigError with the grammar."""
    cards, _, host = text.replace(" ", "").partition("host=")
    if not host:
        raise ConfigError(f"--machine: '{text}' has no host=SIZE; expected {GRAMMAR}")
    sizes: list[int] = []
    for part in filter(None, cards.removesuffix(",").split("+")):
        match = re.fullmatch(r"(?:(\d{1,3})x)?(\d.*)", part)
        if match is None:
            raise ConfigError(f"--machine: '{part}' is not a card; expected {GRAMMAR}")
        sizes.extend([_size(match[2], text)] * int(match[1] or 1))
    return Machine(tuple(sizes), _size(host, text))


def for_machine(config: ServerConfig, machine: Machine) -> ServerConfig:
    """The configuration with that machine's platform."""
    if config.vllm.platform != "auto":
        return config
    platform = "cuda" if machine.cards else "cpu"
    return config.model_copy(update={"vllm": config.vllm.model_copy(update={"platform": platform})})


def rooms(config: ServerConfig, machine: Machine | None) -> Rooms:
    """The memory that the configuration gives to experts. Raises ConfigError if it exceeds the machine's."""
    divided = f", divided into {config.memory.cards} cards" if (config.memory.cards or 1) > 1 else ""
    if machine is None:
        capacity = build_capacity(config)
        there = _there(config, capacity.cards)
        cards = capacity.cards + (0,) * (len(there) - len(capacity.cards))  # amounts leave out what has no room
        return Rooms(cards, capacity.host, f"this machine{divided}", there)
    refuse_division(config)
    if not machine.cards:
        cards, host = ram_as_cards(config, machine.host), amount_of(config.memory.host, machine.host, 0.5)
        _refuse_more_host(sum(cards) + host, machine.host, "memory: device and host together need")
        told = f"a machine without a GPU and with {gib(machine.host)} of RAM{divided}"
        return Rooms(cards, host, told, (max(cards),) * len(cards))
    host = amount_of(config.memory.host, machine.host, 0.8)
    _refuse_more_host(host, machine.host, "memory.host: needs")
    settings = for_each_card(config, len(machine.cards))
    cards = tuple(card_limit(one, DeviceBytes(size, 0)) for one, size in zip(settings, machine.cards, strict=True))
    return Rooms(cards, host, f"{_told(machine.cards)} and {gib(machine.host)} of host memory", machine.cards)


def _there(config: ServerConfig, cards: tuple[int, ...]) -> tuple[int, ...]:
    """What the cards of this machine have in all: equal ones have unequal room where one is in use already."""
    if platform_of(config) == "cpu" or not weights_here(config):
        return (max(cards, default=0),) * (config.memory.cards or 1)
    try:
        return tuple(card.total for card in card_readings())
    except EngineError:
        return cards


def _refuse_more_host(wanted: int, there: int, asks: str) -> None:
    if wanted > there:
        raise ConfigError(f"{asks} {mib(wanted)} of RAM; the machine has {mib(there)}; lower it")


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
