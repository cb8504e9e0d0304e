"""How much of the GPU's memory is used, asked of NVIDIA's driver library. Knows nothing of processes.

Whole-device numbers on purpose: inside a container the driver does not tell which process holds what, and engines move
one at a time.
"""

from __future__ import annotations

import ctypes

from coe_server.errors import EngineError

_LIBRARY = "libnvidia-ml.so.1"


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def used_device_bytes(index: int = 0) -> int:
    """Bytes in use on one NVIDIA device. Raises `EngineError` where the driver cannot be asked."""
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise EngineError(f"cannot see the device's memory: {_LIBRARY} is missing") from error
    handle, memory = ctypes.c_void_p(), _Memory()
    _check(nvml.nvmlInit_v2(), "nvmlInit")
    try:
        _check(nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)), "nvmlDeviceGetHandle")
        _check(nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)), "nvmlDeviceGetMemoryInfo")
    finally:
        nvml.nvmlShutdown()
    return int(memory.used)


def _check(status: int, call: str) -> None:
    if status != 0:
        raise EngineError(f"cannot see the device's memory: {call} answered {status}")
