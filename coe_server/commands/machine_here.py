"""This machine as `coe init` sees it: cards, memory, and the programs that could run experts.

Opens no connection. Of what it finds it runs `--version` alone, for two seconds at most.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coe_server.build.capacity import amount_of, card_limit
from coe_server.engines.cards import Cards, DeviceBytes
from coe_server.engines.hub import gib
from coe_server.engines.memory import available_host_bytes
from coe_server.engines.settings import Platform
from coe_server.engines.vllm.command import detect_platform
from coe_server.errors import EngineError

VLLM, LLAMA = "vllm", "llama-server"
VERSION_SECONDS = 2.0
_LONGEST_VERSION_BYTES = 4096
_NEEDED_TO_RUN = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Program:
    """A program on PATH; `version` is empty if it did not print one in time."""

    path: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class CardHere:
    """A card: its model, its total bytes, and the bytes free for experts now."""

    model: str
    total_bytes: int
    room_bytes: int


@dataclass(frozen=True, slots=True)
class MachineHere:
    """The memory that experts may use. Without cards `device` and `host` are parts of the same RAM."""

    cards: tuple[CardHere, ...]
    ram_bytes: int  # available now
    programs: Mapping[str, Program]
    card_trouble: str = ""  # error of the driver's library
    is_found_by_itself: bool = True  # True if `vllm.platform: auto` finds the cards

    @property
    def platform(self) -> Platform:
        return "cuda" if self.cards else "cpu"

    @property
    def host_room(self) -> int:
        """Bytes of host memory, as for `memory.host: auto`."""
        return amount_of(None, self.ram_bytes, 0.8 if self.cards else 0.5)

    def told(self) -> Iterator[str]:
        """One line per finding."""
        for index, card in enumerate(self.cards):
            room = f"{gib(card.total_bytes)}, of which experts may take {gib(card.room_bytes)} now"
            yield f"card {index}: {card.model}, {room}"
        if not self.cards:
            yield f"no NVIDIA card{f' ({self.card_trouble})' if self.card_trouble else ''}: engines run on the CPU"
        yield f"{gib(self.ram_bytes)} of RAM available"
        for name, program in self.programs.items():
            yield f"{name}: {program.path}{f', {program.version}' if program.version else ''}"
        for name in (VLLM, LLAMA):
            if name not in self.programs:
                yield f"{name}: not on PATH"


def look(environment: Mapping[str, str]) -> MachineHere:
    """Inspect this machine with the driver's library, /proc and PATH."""
    cards, trouble = _cards()
    programs = {name: found for name in (VLLM, LLAMA) if (found := _program(name, environment)) is not None}
    return MachineHere(cards, available_host_bytes(), programs, trouble, detect_platform() == "cuda")


def _cards() -> tuple[tuple[CardHere, ...], str]:
    cards = Cards()
    try:
        return tuple(_card(cards, uuid) for uuid in cards.visible()), ""
    except EngineError as error:
        return (), str(error) if detect_platform() == "cuda" else ""


def _card(cards: Cards, uuid: str) -> CardHere:
    reading = cards.reading(uuid)
    return CardHere(cards.facts(uuid).model, reading.total, card_limit(None, DeviceBytes(reading.total, reading.used)))


def _program(name: str, environment: Mapping[str, str]) -> Program | None:
    found = shutil.which(name, path=environment.get("PATH", ""))
    if found is None:
        return None
    path = str(Path(found).absolute())
    return Program(path, _version(path, {key: environment[key] for key in _NEEDED_TO_RUN if key in environment}))


def _version(path: str, environment: Mapping[str, str]) -> str:
    """The version in the first words of the output of `--version`."""
    try:
        with _running([path, "--version"], environment) as process:
            said = _first_bytes(process, time.monotonic() + VERSION_SECONDS)
    except OSError:
        return ""
    found = re.search(r"(?:version:?\s+)?v?(\d[\w.+-]{0,40})", said.decode("utf-8", "replace"))
    return found[1] if found else ""


@contextmanager
def _running(words: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A context that ends the process and all its children on exit."""
    process = subprocess.Popen(
        words,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None, "it was asked for"
        process.stdout.close()
        process.wait()


def _first_bytes(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """The output until its end, the deadline, or a limit that no version exceeds."""
    assert process.stdout is not None, "it was asked for"
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(said) < _LONGEST_VERSION_BYTES and (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                break
            piece = os.read(process.stdout.fileno(), _LONGEST_VERSION_BYTES)
            if not piece:
                break
            said += piece
    return said
