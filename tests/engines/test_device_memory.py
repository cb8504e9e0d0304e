"""Whose memory the driver is asked about. The library is a stand-in: no test machine has a card."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from coe_server.engines.memory import DeviceBytes, card_bytes, device_bytes, visible_device
from coe_server.engines.vllm_command import detect_platform
from coe_server.errors import ConfigError, EngineError

CARDS = ("GPU-aaaa-1", "GPU-bbbb-2", "MIG-cccc-3")
NOT_FOUND = 6


class Driver:
    """The part of NVML that is asked, with three cards; the one at place n uses n GB of 10 n GB."""

    def __init__(self) -> None:
        self.open = 0

    def nvmlInit_v2(self) -> int:  # noqa: N802  NVIDIA's name
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:  # noqa: N802  NVIDIA's name
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802  NVIDIA's name
        count._obj.value = len(CARDS)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:  # noqa: N802  NVIDIA's name
        if index.value >= len(CARDS):
            return NOT_FOUND
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: ctypes.c_char_p, handle: Any) -> int:  # noqa: N802  NVIDIA's name
        name = (uuid.value or b"").decode()
        if name not in CARDS:
            return NOT_FOUND
        handle._obj.value = CARDS.index(name) + 1
        return 0

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, uuid: Any, length: ctypes.c_uint) -> int:  # noqa: N802
        assert length.value >= 80
        uuid.value = CARDS[(handle.value or 0) - 1].encode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:  # noqa: N802  NVIDIA's name
        memory._obj.total, memory._obj.used = 10_000_000_000 * (handle.value or 0), 1_000_000_000 * (handle.value or 0)
        return 0


@pytest.mark.parametrize(
    ("listed", "place"),
    [
        (None, 1),
        ("0", 1),
        ("1", 2),
        (" 2 , 0", 3),
        ("GPU-bbbb-2", 2),
        ("GPU-bb", 2),
        ("MIG-cccc-3,0", 3),
    ],
)
def test_the_card_that_is_asked_about_is_the_one_that_cuda_takes_first(listed: str | None, place: int) -> None:
    driver = Driver()
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert device_bytes(driver, environment) == DeviceBytes(place * 10_000_000_000, place * 1_000_000_000)
    assert driver.open == 0, "the library is closed again"


@pytest.mark.parametrize(
    ("listed", "why"), [("7", "answered 6"), ("GPU-dd", "names 'GPU-dd' and there is no such card")]
)
def test_a_card_that_is_not_there_is_an_error_that_names_it(listed: str, why: str) -> None:
    driver = Driver()
    with pytest.raises(EngineError, match=why):
        device_bytes(driver, {"CUDA_VISIBLE_DEVICES": listed})
    assert driver.open == 0


@pytest.mark.parametrize("listed", ["", "-1", "NoDevFiles"])
def test_where_every_card_is_hidden_there_is_none_to_ask_about(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_device({"CUDA_VISIBLE_DEVICES": listed}) is None
    with pytest.raises(EngineError, match="hides every card"):
        device_bytes(Driver(), {"CUDA_VISIBLE_DEVICES": listed})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert detect_platform() == "cpu"
    with pytest.raises(ConfigError, match=r"memory\.device: .*hides every card; give the size in bytes"):
        card_bytes()
