"""Memory of one engine on its cards: reported by its ranks, checked with the driver.

The ranks' reports (`worker/coe_memory_report.py`) feed the ledger. The driver's figures are per card, shared with
other processes. They show whether memory is free, and include what allocators do not count: context, NCCL, graphs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe_server.engines.cards import Cards, DeviceBytes
from coe_server.errors import EngineError

logger = logging.getLogger(__name__)

FREED_SHARE = 0.9
_FREED_SECONDS = 2.0  # a driver may show released memory as free only after some time
_FREED_POLL_SECONDS = 0.02
_DRIVER_SECONDS = 10.0  # a driver that has lost a card may hang
_LEAST_CONTEXT_BYTES = 300 << 20  # of a CUDA context with its libraries; 450 to 550 MiB on an H100
_UTILIZATION_STEPS = 1000  # resolution of the utilization: three digits are 80 MB of 80 GB
_LONGEST_REPORT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RankReport:
    """One rank's report, in bytes."""

    pid: int
    card: str  # UUID
    pool_bytes: int  # mapped in the sleep pool: weights and KV cache
    torch_bytes: int  # reserved by torch's own allocator: activations, graphs
    pinned_bytes: int  # host memory, with the copies of the weights

    @property
    def own_bytes(self) -> int:
        return self.pool_bytes + self.torch_bytes


@dataclass(frozen=True, slots=True)
class Look:
    """A reading of an engine's cards: bytes in use, by process if the driver reports it, and what others may take."""

    used: tuple[int, ...]
    processes: tuple[dict[int, int] | None, ...]
    others: tuple[int, ...]  # bytes that other engines of this server might be allocating at that time


@dataclass(frozen=True, slots=True)
class HeldAwake:
    """The memory of an engine at the beginning of its sleep."""

    reports: tuple[RankReport, ...]
    look: Look


class SeatMemory:
    """The device memory of one engine over all its runs. `width`: number of ranks, one per card."""

    def __init__(self, name: str, cards: Cards, width: int, rank_bytes: int, context_bytes: int) -> None:
        self.cards = cards
        self.seat: tuple[str, ...] = ()
        self.awake: tuple[int, ...] = ()  # bytes per rank, once measured
        self._name = name
        self._width = width
        self._rank_bytes = rank_bytes  # estimate of a rank's weights and KV cache
        self._context_estimate = context_bytes
        self._context: tuple[int, ...] = ()  # per rank: bytes that no allocator counts
        self._held: tuple[int, ...] = ()  # per rank: lower bound on bytes held now
        self._woken: tuple[int, ...] = ()  # the same after the next wake
        self._before: tuple[DeviceBytes, ...] = ()

    async def take(self, seat: Sequence[int] = ()) -> None:
        """Use these cards (indices of visible ones) for the next run.

        Raises `CardLost` if one is gone, `EngineError` if there are too few.
        """
        visible = await asyncio.to_thread(self.cards.visible)
        indices = tuple(seat) or tuple(range(self._width))
        if len(indices) != self._width or max(indices) >= len(visible):
            raise EngineError(
                f"engine '{self._name}' needs {self._width} cards; {len(visible)} are visible, it was given {indices}"
            )
        self.seat = tuple(visible[index] for index in indices)
        self._held = ()
        self._before = await asyncio.to_thread(self.cards.readings, indices)

    def utilization(self) -> float:
        """The share of a card that is free when vLLM checks it at its start, rounded down; the least over the ranks.

        vLLM checks after it has created CUDA contexts and NCCL (vllm/v1/worker/gpu_worker.py, init_device). With a KV
        cache in bytes it uses the number for nothing else.
        """
        wanted = [size - context for size, context in zip(self.awake, self._context, strict=True)]
        wanted = wanted or [self._rank_bytes] * self._width
        share = min(size / card.total for size, card in zip(wanted, self._before, strict=True))
        return min(1.0, max(1, math.floor(share * _UTILIZATION_STEPS)) / _UTILIZATION_STEPS)

    def taking(self, size_bytes: int) -> AbstractContextManager[None]:
        """Note, within this context, that the engine may allocate up to this much on each of its cards."""
        return self.cards.taking(self, self.seat, size_bytes)

    async def measure(self, reports: Sequence[RankReport]) -> None:
        """Measure the memory of the awake ranks."""
        look = await self.look()
        self._context = tuple(
            _context_bytes(report, look.used[rank] - before.used, look.processes[rank], self._context_estimate)
            for rank, (report, before) in enumerate(zip(reports, self._before, strict=True))
        )
        self.awake = self._held = _totals(reports, self._context)

    async def until_freed(self, before: HeldAwake, reports: Sequence[RankReport]) -> int:
        """Wait until each card shows the memory that its rank released. Returns the bytes that the largest rank keeps.

        Raises `EngineError` if a rank has not released its memory.
        """
        wanted = [
            round(FREED_SHARE * max(old.pool_bytes, old.own_bytes - new.own_bytes))
            for old, new in zip(before.reports, reports, strict=True)
        ]
        told = [old.own_bytes - new.own_bytes for old, new in zip(before.reports, reports, strict=True)]
        for rank, (freed, least) in enumerate(zip(told, wanted, strict=True)):
            if freed < least:
                raise EngineError(_kept(self._name, self.seat[rank], freed, least))

        others = before.look.others

        def missing(now: Look) -> list[int]:
            nonlocal others
            others = tuple(map(max, others, now.others))  # what was taken stays when the move that took it is over
            return [
                least - _freed(rank, before.reports[rank].pid, before.look, now, others[rank])
                for rank, least in enumerate(wanted)
            ]

        left = await _until_none(missing, self.look)
        for rank, lacking in enumerate(left):
            if lacking > 0:
                raise EngineError(_kept(self._name, self.seat[rank], wanted[rank] - lacking, wanted[rank]))
        self._held = _totals(reports, self._context)
        self._woken = tuple(
            asleep + report.pool_bytes for asleep, report in zip(self._held, before.reports, strict=True)
        )
        return max(self._held)

    def woken(self) -> None:
        """Note a wake: weights and cache are on the device; the memory of steps follows with the first long one."""
        self._held = self._woken or self._held

    async def before_end(self) -> Look | None:
        """A reading before a process ends; None if nothing was measured or the driver does not answer."""
        if not self._held:
            return None
        try:
            return await self.look()
        except EngineError:
            return None

    async def until_given_back(self, before: Look | None) -> None:
        """Wait until the cards show the memory of an ended run as free; log a warning if it stays in use."""
        held, self._held = self._held, ()
        if before is None or not held:
            return
        wanted = [round(FREED_SHARE * size) for size in held]

        def missing(now: Look) -> list[int]:
            return [
                least + now.used[rank] - before.used[rank] - self.cards.taken_by_others(self, self.seat[rank])
                for rank, least in enumerate(wanted)
            ]

        try:
            lacking = max(await _until_none(missing, self.look))
        except EngineError as error:
            logger.warning("engine '%s' ended; its GPU memory could not be checked: %s", self._name, error)
            return
        if lacking > 0:
            logger.warning("engine '%s' ended; the GPU holds %d bytes more than expected", self._name, lacking)

    async def look(self) -> Look:
        """A reading of its cards now. Raises `EngineError` if the driver does not answer."""
        others = tuple(self.cards.taken_by_others(self, card) for card in self.seat)

        def look() -> Look:
            return Look(
                tuple(self.cards.reading(card).used for card in self.seat),
                tuple(self.cards.processes(card) for card in self.seat),
                others,
            )

        try:
            async with asyncio.timeout(_DRIVER_SECONDS):
                return await asyncio.to_thread(look)
        except TimeoutError as error:
            raise EngineError(f"the GPU driver did not answer within {_DRIVER_SECONDS:g} s") from error


def _context_bytes(report: RankReport, taken: int, processes: dict[int, int] | None, estimate: int) -> int:
    """What a rank holds and no allocator counts; `taken` is how much more is in use on its card than before it."""
    if processes is not None and report.pid in processes:
        return max(0, processes[report.pid] - report.own_bytes)
    seen = taken - report.own_bytes
    return seen if _LEAST_CONTEXT_BYTES <= seen <= estimate else estimate  # else it includes another engine's move


def _totals(reports: Sequence[RankReport], context: Sequence[int]) -> tuple[int, ...]:
    return tuple(report.own_bytes + uncounted for report, uncounted in zip(reports, context, strict=True))


def _freed(rank: int, pid: int, before: Look, now: Look, others: int) -> int:
    old, new = before.processes[rank], now.processes[rank]
    if old is not None and new is not None and pid in old:
        return old[pid] - new.get(pid, 0)
    return before.used[rank] - now.used[rank] + others


async def _until_none(missing: Callable[[Look], list[int]], look: Callable[[], Awaitable[Look]]) -> list[int]:
    """What the first reading without missing bytes shows, or the last one before the time limit."""
    now = asyncio.get_running_loop().time
    deadline = now() + _FREED_SECONDS
    while True:
        lacking = missing(await look())
        if max(lacking) <= 0 or now() > deadline:
            return lacking
        await asyncio.sleep(_FREED_POLL_SECONDS)  # the system does not announce that memory was freed


def read_reports(folder: Path, seat: Sequence[str]) -> tuple[RankReport, ...]:
    """The reports of all ranks, in the order of the cards. Raises `EngineError` if one is missing or invalid."""
    try:
        written = [_report(file) for file in sorted(folder.glob("memory-*.json"))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(f"an engine's report of its memory cannot be read: {error!r}") from error
    if len(written) != len(seat):
        raise EngineError(f"{len(written)} of an engine's {len(seat)} ranks have reported their memory")
    if {report.card for report in written} == set(seat):
        written.sort(key=lambda report: seat.index(report.card))
    return tuple(written)


def forget_reports(folder: Path) -> None:
    for file in folder.glob("memory-*.json"):
        file.unlink(missing_ok=True)


def _report(file: Path) -> RankReport:
    seen = file.lstat()
    if not stat.S_ISREG(seen.st_mode) or seen.st_size > _LONGEST_REPORT_BYTES:
        raise ValueError(f"{file.name} is not a report")
    told: dict[str, Any] = json.loads(file.read_text())
    sizes = {name: max(0, int(told[name])) for name in ("pid", "pool_bytes", "torch_bytes", "pinned_bytes")}
    return RankReport(card=str(told["card"]), **sizes)


def _kept(name: str, card: str, freed: int, wanted: int) -> str:
    return f"engine '{name}' sleeps but freed {freed} bytes of {card}, {wanted} were expected"
