"""Replaces NVIDIA's NVML bindings (`nvidia-ml-py`) and reads the pretend cards. Put this folder on PYTHONPATH.

Names, signatures and exceptions are the library's. `used` includes the driver's memory, as in NVML's version 1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.cuda.cards import VARIABLE, Cards

NVML_SUCCESS = 0
NVML_ERROR_UNINITIALIZED = 1
NVML_ERROR_INVALID_ARGUMENT = 2
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_GPU_IS_LOST = 15
NVML_DEVICE_MIG_DISABLE, NVML_DEVICE_MIG_ENABLE = 0, 1
NVML_TOPOLOGY_SYSTEM = 50

_WORDS = {
    NVML_ERROR_UNINITIALIZED: "Uninitialized",
    NVML_ERROR_INVALID_ARGUMENT: "Invalid Argument",
    NVML_ERROR_NOT_SUPPORTED: "Not Supported",
    NVML_ERROR_NOT_FOUND: "Not Found",
    NVML_ERROR_DRIVER_NOT_LOADED: "Driver Not Loaded",
    NVML_ERROR_LIBRARY_NOT_FOUND: "NVML Shared Library Not Found",
    NVML_ERROR_GPU_IS_LOST: "GPU is lost",
}
_initialised = 0
calls: dict[str, int] = {}  # calls of each function, for tests in this process


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return _WORDS.get(self.value, f"Unknown Error ({self.value})")


class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801  the library's name
    def __init__(self) -> None:
        super().__init__(NVML_ERROR_LIBRARY_NOT_FOUND)


class NVMLError_NotSupported(NVMLError):  # noqa: N801  the library's name
    def __init__(self) -> None:
        super().__init__(NVML_ERROR_NOT_SUPPORTED)


class NVMLError_GpuIsLost(NVMLError):  # noqa: N801  the library's name
    def __init__(self) -> None:
        super().__init__(NVML_ERROR_GPU_IS_LOST)


class NVMLError_NotFound(NVMLError):  # noqa: N801  the library's name
    def __init__(self) -> None:
        super().__init__(NVML_ERROR_NOT_FOUND)


class NVMLError_InvalidArgument(NVMLError):  # noqa: N801  the library's name
    def __init__(self) -> None:
        super().__init__(NVML_ERROR_INVALID_ARGUMENT)


@dataclass(frozen=True)
class _Memory:
    total: int
    free: int
    used: int


@dataclass(frozen=True)
class _Process:
    pid: int
    usedGpuMemory: int  # noqa: N815  the library's name


@dataclass(frozen=True)
class _Pci:
    busId: str  # noqa: N815  the library's name


def nvmlInit() -> None:  # noqa: N802  the library's names from here on
    global _initialised  # noqa: PLW0603  as the library
    _count("nvmlInit")
    if VARIABLE not in os.environ:
        raise NVMLError_LibraryNotFound
    _initialised += 1


def nvmlShutdown() -> None:  # noqa: N802
    global _initialised  # noqa: PLW0603  as the library
    _count("nvmlShutdown")
    _cards()
    _initialised -= 1


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    _cards()
    return "580.95.05"


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len(_cards())


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    if not 0 <= index < len(_cards()):
        raise NVMLError_InvalidArgument
    return _living(index)


def nvmlDeviceGetHandleByUUID(uuid: str | bytes) -> int:  # noqa: N802
    wanted = uuid.decode() if isinstance(uuid, bytes) else uuid
    cards = _cards()
    for index in range(len(cards)):
        if cards.uuid(index) == wanted:
            return _living(index)
    raise NVMLError_NotFound


def nvmlDeviceGetUUID(handle: int) -> str:  # noqa: N802
    return _cards().uuid(_living(handle))


def nvmlDeviceGetName(handle: int) -> str:  # noqa: N802
    return _cards().name(_living(handle))


def nvmlDeviceGetPciInfo(handle: int) -> _Pci:  # noqa: N802
    return _Pci(f"00000000:{_living(handle) + 1:02X}:00.0")


def nvmlDeviceGetMemoryInfo(handle: int, version: int | None = None) -> _Memory:  # noqa: N802
    _count("nvmlDeviceGetMemoryInfo")
    reading = _cards().reading(_living(handle))
    return _Memory(reading.total, reading.free, reading.used)


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[_Process]:  # noqa: N802
    return [_Process(pid, size) for pid, size in _cards().processes(_living(handle)).items()]


def nvmlDeviceGetMigMode(handle: int) -> list[int]:  # noqa: N802
    _living(handle)
    raise NVMLError_NotSupported


def nvmlDeviceGetNumaNodeId(handle: int) -> int:  # noqa: N802
    _living(handle)
    raise NVMLError_NotSupported


def nvmlDeviceGetTopologyCommonAncestor(one: int, other: int) -> int:  # noqa: N802
    _living(one), _living(other)
    return NVML_TOPOLOGY_SYSTEM


def _cards() -> Cards:
    if not _initialised:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    return Cards()


def _living(handle: int) -> int:
    if _cards().is_lost(handle):
        raise NVMLError_GpuIsLost
    return handle


def _count(name: str) -> None:
    calls[name] = calls.get(name, 0) + 1
