"""The NVIDIA cards of this machine, read with the driver's library NVML. Does not depend on engines.

A reading takes milliseconds, longer while the driver is busy: call these methods in a thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from coe_server.errors import CardLost, EngineError

# Inode of the initial PID namespace, fixed in Linux (PROC_PID_INIT_INO). In another namespace the driver reports
# foreign process ids, or none.
_FIRST_NAMESPACE = "pid:[4026531836]"
_HIDDEN = frozenset(("", "-1", "NoDevFiles"))


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """Memory of one card, in bytes."""

    total: int
    used: int

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Constant properties of a card. `links`: UUIDs of the cards connected by NVLink."""

    uuid: str
    total_bytes: int
    model: str = ""
    links: frozenset[str] = frozenset()
    instance: bool = False  # a MIG instance
    numa_node: int | None = None


class Cards:
    """The cards that engines may use, by UUID, in CUDA's order. NVML is initialised once, at the first reading.

    Shared by the engines of a server: it keeps track of memory that other engines may be allocating meanwhile.
    """

    def __init__(
        self, nvml: Any = None, environment: Mapping[str, str] = os.environ, tells_processes: bool | None = None
    ) -> None:
        self._given_nvml = nvml
        self._environment = environment
        self._tells_processes = _in_first_namespace() if tells_processes is None else tells_processes
        self._taking: dict[object, tuple[frozenset[str], int]] = {}
        self._visible: tuple[str, ...] | None = None

    def visible(self) -> tuple[str, ...]:
        """UUIDs of the cards visible to engines; in MIG mode those of the instances. Raises `EngineError`.

        Asked once: a card that is lost later keeps its index, and does not hide the others.
        """
        if self._visible is None:
            with self._asked("every card") as nvml:
                listed = visible_names(self._environment)
                if listed is None:
                    listed = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
                self._visible = tuple(uuid for name in listed for uuid in _uuids(nvml, name))
        return self._visible

    def reading(self, uuid: str) -> DeviceBytes:
        """Raises `CardLost` for a GPU that is gone, `EngineError` where the driver does not answer."""
        with self._asked(uuid) as nvml:
            memory = nvml.nvmlDeviceGetMemoryInfo(_handle(nvml, uuid))
        return DeviceBytes(int(memory.total), int(memory.used))

    def readings(self, indices: Sequence[int]) -> tuple[DeviceBytes, ...]:
        """The same for cards by their index among the visible ones; a `CardLost` names the index too."""
        found = []
        for index in indices:
            try:
                found.append(self.reading(self.visible()[index]))
            except CardLost as lost:
                lost.index = index
                raise
        return tuple(found)

    def processes(self, uuid: str) -> dict[int, int] | None:
        """Process id -> bytes on a card; None if the driver does not report it, as in a container."""
        if not self._tells_processes:
            return None
        with self._asked(uuid) as nvml:
            try:
                found = nvml.nvmlDeviceGetComputeRunningProcesses(_handle(nvml, uuid))
            except nvml.NVMLError:
                return None  # not supported on this card
        if any(process.usedGpuMemory is None for process in found):
            return None
        return {int(process.pid): int(process.usedGpuMemory) for process in found}

    def facts(self, uuid: str) -> CardFacts:
        """Raises `EngineError` where the driver does not answer."""
        with self._asked(uuid) as nvml:
            handle = _handle(nvml, uuid)
            return CardFacts(
                uuid,
                int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                str(nvml.nvmlDeviceGetName(handle)),
                frozenset(_linked(nvml, handle)),
                uuid.startswith("MIG-"),
                _numa_node(nvml, handle),
            )

    @contextmanager
    def taking(self, engine: object, cards: Sequence[str], size_bytes: int) -> Iterator[None]:
        """Note, within this context, that an engine may allocate up to this much on each of these cards."""
        outer = self._taking.get(engine)  # a start may include a wake
        self._taking[engine] = (frozenset(cards), size_bytes)
        try:
            yield
        finally:
            if outer is None:
                del self._taking[engine]
            else:
                self._taking[engine] = outer

    def taken_by_others(self, engine: object, uuid: str) -> int:
        """Bytes that other engines of this server may be allocating on a card now."""
        taking = self._taking.items()
        return sum(size for other, (cards, size) in taking if other is not engine and uuid in cards)

    @contextmanager
    def _asked(self, card: str) -> Iterator[Any]:
        nvml = self._given_nvml or _nvml()
        try:
            _initialise(nvml)
            yield nvml
        except nvml.NVMLError as error:
            if card in (self._visible or ()) and isinstance(error, nvml.NVMLError_GpuIsLost):
                raise CardLost(f"the GPU is lost (CUDA device {card}); it is gone until it is reset", card) from error
            raise EngineError(
                f"cannot read the GPU's memory: {error} (CUDA device {card}){_hint(nvml, error)}"
            ) from error


def card_readings() -> tuple[DeviceBytes, ...]:
    """Memory of every card that engines may use, in CUDA's order. Raises `EngineError` without an answer."""
    cards = Cards()
    visible = cards.visible()
    if not visible:
        raise EngineError("cannot read the GPU's memory: CUDA_VISIBLE_DEVICES hides every card")
    return tuple(cards.reading(uuid) for uuid in visible)


def card_model() -> str:
    """Model and bytes of the first card; empty if there is none or its driver does not answer."""
    cards = Cards()
    try:
        facts = cards.facts(next(iter(cards.visible()), ""))
    except EngineError:
        return ""
    return f"{facts.model}, {facts.total_bytes} bytes"


def device_bytes(nvml: Any = None, environment: Mapping[str, str] = os.environ) -> DeviceBytes:
    """Memory of the first card. `nvml`: the module `pynvml`. Raises `EngineError` if the driver does not answer."""
    device = visible_device(environment)
    if device is None:
        raise EngineError("cannot read the GPU's memory: CUDA_VISIBLE_DEVICES hides every card")
    return Cards(nvml, environment).reading(device)


def visible_device(environment: Mapping[str, str] = os.environ) -> str | None:
    """The first visible card: its index, its UUID, or a prefix of its UUID.

    None if `CUDA_VISIBLE_DEVICES` hides every card. Indices are in PCI order, as in NVML; engines get the same order.
    """
    listed = visible_names(environment)
    return "0" if listed is None else next(iter(listed), None)


def visible_names(environment: Mapping[str, str]) -> list[str] | None:
    """The entries of `CUDA_VISIBLE_DEVICES` up to the first that hides the rest; None (all cards) if it is not set."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    names = []
    for name in (word.strip() for word in listed.split(",")):
        if name in _HIDDEN:
            break
        names.append(name)
    return names


def _in_first_namespace() -> bool:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid") == _FIRST_NAMESPACE
    return False


def _nvml() -> Any:
    import pynvml  # noqa: PLC0415  only needed with a GPU; its import takes 30 ms

    return pynvml


_ONE_START = threading.Lock()


def _initialise(nvml: Any) -> None:
    with _ONE_START:
        _initialised(nvml)


def _hint(nvml: Any, error: Exception) -> str:
    if getattr(error, "value", None) != getattr(nvml, "NVML_ERROR_NOT_SUPPORTED", error):
        return ""
    return "; a GPU that shares its memory with the processor, as in a DGX Spark, is not supported"


@cache
def _initialised(nvml: Any) -> None:
    """Initialise NVML once per process. A failure is not cached, so the next reading tries again."""
    nvml.nvmlInit()


def _handle(nvml: Any, device: str) -> Any:
    if device.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(device))
    with suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetHandleByUUID(device)  # a whole card or a MIG instance
    for index in range(nvml.nvmlDeviceGetCount()):  # CUDA accepts a prefix of a UUID
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if nvml.nvmlDeviceGetUUID(handle).startswith(device):
            return handle
    raise EngineError(f"cannot read the GPU's memory: CUDA_VISIBLE_DEVICES names {device!r}, which does not exist")


def _uuids(nvml: Any, name: str) -> list[str]:
    handle = _handle(nvml, name)
    return _instances(nvml, handle) or [str(nvml.nvmlDeviceGetUUID(handle))]


def _instances(nvml: Any, handle: Any) -> list[str]:
    """UUIDs of a card's MIG instances, which CUDA shows in place of the card."""
    found: list[str] = []
    with suppress(nvml.NVMLError, AttributeError):
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        if current != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with suppress(nvml.NVMLError):  # an index may be unused
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                found.append(str(nvml.nvmlDeviceGetUUID(instance)))
    return found


def _linked(nvml: Any, handle: Any) -> Iterator[str]:
    """UUIDs of the cards directly connected by NVLink."""
    by_bus = {}
    with suppress(nvml.NVMLError, AttributeError):
        for index in range(nvml.nvmlDeviceGetCount()):
            other = nvml.nvmlDeviceGetHandleByIndex(index)
            by_bus[nvml.nvmlDeviceGetPciInfo(other).busId] = str(nvml.nvmlDeviceGetUUID(other))
        for link in range(nvml.NVML_NVLINK_MAX_LINKS):
            if nvml.nvmlDeviceGetNvLinkState(handle, link):
                uuid = by_bus.get(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId)
                if uuid is not None:
                    yield uuid


def _numa_node(nvml: Any, handle: Any) -> int | None:
    with suppress(nvml.NVMLError, AttributeError):
        return int(nvml.nvmlDeviceGetNumaNodeId(handle))
    with suppress(OSError, ValueError, nvml.NVMLError, AttributeError):
        bus = nvml.nvmlDeviceGetPciInfo(handle).busId
        place = (bus.decode() if isinstance(bus, bytes) else str(bus)).lower()[-12:]
        node = int((Path("/sys/bus/pci/devices") / place / "numa_node").read_text())
        return node if node >= 0 else None
    return None
