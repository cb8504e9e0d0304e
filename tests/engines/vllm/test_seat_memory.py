"""Which card's memory is read, and how NVML is used. The module `pynvml` is a fake: no test machine has a card."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from coe_server.engines.cards import Cards, DeviceBytes, card_readings, device_bytes, visible_device
from coe_server.engines.vllm.command import detect_platform
from coe_server.errors import CardLost, EngineError

CARDS = ("GPU-aaaa-1", "GPU-bbbb-2", "MIG-cccc-3")


class FakeNvml:
    """The part of `pynvml` that is used, with three cards; card n uses n GB of 10 n GB. A handle is the card's n."""

    class NVMLError(Exception):
        pass

    class NVMLError_GpuIsLost(NVMLError):  # noqa: N801  NVIDIA's name
        pass

    def __init__(self, failing_starts: int = 0) -> None:
        self.starts = 0
        self.lost = 0  # the card that has fallen off the bus
        self._failing_starts = failing_starts

    def nvmlInit(self) -> None:  # noqa: N802  NVIDIA's name
        self.starts += 1
        if self.starts <= self._failing_starts:
            raise self.NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  NVIDIA's name
        return len(CARDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802  NVIDIA's name
        if index >= len(CARDS):
            raise self.NVMLError("Invalid Argument")
        return self._living(index + 1)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802  NVIDIA's name
        if uuid not in CARDS:
            raise self.NVMLError("Not Found")
        return self._living(CARDS.index(uuid) + 1)

    def _living(self, handle: int) -> int:
        if handle == self.lost:
            raise self.NVMLError_GpuIsLost("GPU is lost")
        return handle

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802  NVIDIA's name
        return CARDS[handle - 1]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802  NVIDIA's name
        return SimpleNamespace(total=10_000_000_000 * handle, used=1_000_000_000 * handle)


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
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert device_bytes(FakeNvml(), environment) == DeviceBytes(place * 10_000_000_000, place * 1_000_000_000)


def test_a_lost_card_is_told_apart_and_hides_no_other() -> None:
    nvml = FakeNvml()
    cards = Cards(nvml, {})
    assert cards.visible() == CARDS
    nvml.lost = 2
    assert cards.visible() == CARDS, "indices stay what they were"
    assert cards.reading(CARDS[0]).total == 10_000_000_000
    with pytest.raises(CardLost, match=r"the GPU is lost \(CUDA device GPU-bbbb-2\)") as caught:
        cards.reading(CARDS[1])
    assert (caught.value.card, caught.value.index) == (CARDS[1], None)
    with pytest.raises(CardLost) as caught:
        cards.readings((2, 1))
    assert (caught.value.card, caught.value.index) == (CARDS[1], 1)
    assert [one.total for one in cards.readings((0, 2))] == [10_000_000_000, 30_000_000_000]


def test_nvml_is_initialised_once_for_all_readings() -> None:
    nvml = FakeNvml()
    for card in ("0", "1", "GPU-aa"):
        device_bytes(nvml, {"CUDA_VISIBLE_DEVICES": card})
    assert nvml.starts == 1


def test_a_driver_that_is_missing_at_first_is_looked_for_again() -> None:
    nvml = FakeNvml(failing_starts=2)
    for _ in range(2):
        with pytest.raises(EngineError, match="cannot read the GPU's memory: NVML Shared Library Not Found"):
            device_bytes(nvml, {})
    assert device_bytes(nvml, {}).used == 1_000_000_000
    assert nvml.starts == 3


def test_where_there_is_no_driver_the_error_says_so() -> None:
    if detect_platform() == "cuda":
        pytest.skip("this machine has a driver")
    with pytest.raises(EngineError, match="cannot read the GPU's memory: NVML Shared Library Not Found"):
        device_bytes(environment={})


@pytest.mark.parametrize(
    ("listed", "why"), [("7", "Invalid Argument"), ("GPU-dd", "names 'GPU-dd', which does not exist")]
)
def test_a_card_that_is_not_there_is_an_error_that_names_it(listed: str, why: str) -> None:
    with pytest.raises(EngineError, match=why):
        device_bytes(FakeNvml(), {"CUDA_VISIBLE_DEVICES": listed})


@pytest.mark.parametrize("listed", ["", "-1", "NoDevFiles"])
def test_where_every_card_is_hidden_there_is_none_to_ask_about(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_device({"CUDA_VISIBLE_DEVICES": listed}) is None
    with pytest.raises(EngineError, match="hides every card"):
        device_bytes(FakeNvml(), {"CUDA_VISIBLE_DEVICES": listed})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert detect_platform() == "cpu"
    with pytest.raises(EngineError, match="cannot read the GPU's memory"):
        card_readings()


class InstancesNvml(FakeNvml):
    """The second card is in MIG mode: of its three places for instances two are taken."""

    NVML_DEVICE_MIG_ENABLE = 1

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:  # noqa: N802  NVIDIA's name
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return (1, 1) if handle == 2 else (0, 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:  # noqa: N802  NVIDIA's name
        return 3

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, index: int) -> str:  # noqa: N802  NVIDIA's name
        if index == 1:
            raise self.NVMLError("Not Found")
        return f"MIG-of-{handle}-{index}"

    def nvmlDeviceGetUUID(self, handle: int | str) -> str:  # type: ignore[override]  # noqa: N802  an instance, too
        return handle if isinstance(handle, str) else super().nvmlDeviceGetUUID(handle)


def test_a_card_in_mig_mode_is_its_instances() -> None:
    assert Cards(InstancesNvml(), {}).visible() == ("GPU-aaaa-1", "MIG-of-2-0", "MIG-of-2-2", "MIG-cccc-3")
    assert Cards(InstancesNvml(), {"CUDA_VISIBLE_DEVICES": "MIG-cccc-3"}).visible() == ("MIG-cccc-3",)


class SharedNvml(FakeNvml):
    """A GPU without memory of its own."""

    NVML_ERROR_NOT_SUPPORTED = 3

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802  NVIDIA's name
        error = self.NVMLError("Not Supported")
        error.value = 3  # type: ignore[attr-defined]  as NVIDIA's
        raise error


def test_a_gpu_that_shares_its_memory_with_the_processor_is_named() -> None:
    with pytest.raises(EngineError, match=r"Not Supported .*; a GPU that shares its memory .*DGX Spark, is not supp"):
        device_bytes(SharedNvml(), {})
