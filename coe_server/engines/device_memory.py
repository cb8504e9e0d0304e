"""How much of the GPU's memory there is and is used, asked of NVIDIA's driver library. Knows nothing of processes.

Whole-device numbers on purpose: inside a container the driver does not tell which process holds what, and engines move
one at a time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coe_server.errors import EngineError

_LIBRARY = "libnvidia-ml.so.1"
_UUID_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """One card's memory, in bytes."""

    total: int
    used: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def used_device_bytes() -> int:
    """Bytes in use on the card that engines use. Raises `EngineError` where the driver cannot be asked."""
    return device_bytes().used


def device_bytes(nvml: Any = None, environment: Mapping[str, str] = os.environ) -> DeviceBytes:
    """The memory of the card that engines use; `nvml` is NVIDIA's library. Raises `EngineError` without an answer."""
    device = visible_device(environment)
    if device is None:
        raise EngineError("cannot see the device's memory: CUDA_VISIBLE_DEVICES hides every card")
    nvml = nvml or _library()
    memory = _Memory()
    _check(nvml.nvmlInit_v2(), "nvmlInit")
    try:
        _check(nvml.nvmlDeviceGetMemoryInfo(_handle(nvml, device), ctypes.byref(memory)), "nvmlDeviceGetMemoryInfo")
    finally:
        nvml.nvmlShutdown()
    return DeviceBytes(int(memory.total), int(memory.used))


def visible_device(environment: Mapping[str, str] = os.environ) -> str | None:
    """The card that engines use, the first CUDA would see: its index, or its UUID or the beginning of it.

    None if `CUDA_VISIBLE_DEVICES` hides every card. Indices are in PCI order, NVML's; engines are told to use it too.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES", "0")
    first = listed.split(",")[0].strip()
    return None if first in {"", "-1", "NoDevFiles"} else first


def _handle(nvml: Any, device: str) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    if device.isdigit():
        call, given = "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(device))
        _check(getattr(nvml, call)(given, ctypes.byref(handle)), f"{call}({device})")
        return handle
    call = "nvmlDeviceGetHandleByUUID"  # of a whole card or of a MIG instance
    if getattr(nvml, call)(ctypes.c_char_p(device.encode()), ctypes.byref(handle)) == 0:
        return handle
    return _handle_by_beginning(nvml, device)


def _handle_by_beginning(nvml: Any, device: str) -> ctypes.c_void_p:
    """CUDA lets a UUID be shortened as long as only one card begins like that."""
    count, handle, uuid = ctypes.c_uint(), ctypes.c_void_p(), ctypes.create_string_buffer(_UUID_BYTES)
    _check(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)), "nvmlDeviceGetCount")
    for index in range(count.value):
        _check(nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)), "nvmlDeviceGetHandle")
        _check(nvml.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(_UUID_BYTES)), "nvmlDeviceGetUUID")
        if uuid.value.decode().startswith(device):
            return handle
    raise EngineError(
        f"cannot see the device's memory: CUDA_VISIBLE_DEVICES names {device!r} and there is no such card"
    )


def _library() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise EngineError(f"cannot see the device's memory: {_LIBRARY} is missing") from error


def _check(status: int, call: str) -> None:
    if status != 0:
        raise EngineError(f"cannot see the device's memory: {call} answered {status}")
