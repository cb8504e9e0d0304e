"""Which adapters an engine can take while it runs, by what it was started for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coe_server.engines.adapter import Adapter
from coe_server.engines.vllm.adapter_args import AdapterRoom, adapter_args, room_of


def of_ranks(*ranks: int) -> tuple[Adapter, ...]:
    return tuple(Adapter(f"a{number}", Path("/nowhere"), rank, 1) for number, rank in enumerate(ranks))


@pytest.mark.parametrize(
    ("args", "ranks", "room"),
    [
        ({}, (), None),
        ({"enable_lora": False}, (), None),
        ({"enable_lora": True}, (), AdapterRoom(16, 1, 1)),
        ({"enable-lora": True, "max-lora-rank": 64, "max_loras": 4}, (), AdapterRoom(64, 4, 4)),
        ({"enable_lora": True, "max_cpu_loras": 30}, (), AdapterRoom(16, 1, 30)),
        ({}, (4,), AdapterRoom(8, 1, 9)),
        ({}, (4, 9), AdapterRoom(16, 2, 10)),
        ({}, (4,) * 20, AdapterRoom(8, 8, 28)),
        ({"max_lora_rank": 64, "max_loras": 12}, (4,), AdapterRoom(64, 12, 12)),
        ({"max_cpu_loras": 3}, (4,), AdapterRoom(8, 1, 3)),
    ],
)
def test_the_room_is_what_the_options_and_the_first_adapters_need(
    args: dict[str, Any], ranks: tuple[int, ...], room: AdapterRoom | None
) -> None:
    assert room_of(args, of_ranks(*ranks)) == room
    if room is not None:
        for later in ((), of_ranks(1), of_ranks(*[1] * room.kept)):
            assert room_of({**args, **room.as_args}, later) == room, "at a later start, too"
    if ranks and room is not None:
        assert adapter_args(args, of_ranks(*ranks)).items() >= room.as_args.items()


@pytest.mark.parametrize(
    ("ranks", "why"),
    [
        ((), None),
        ((16,), None),
        ((1, 16, 8), None),
        ((17,), "it was started for ranks up to 16 (max_lora_rank), 'a0' has 17"),
        ((8, 64), "it was started for ranks up to 16 (max_lora_rank), 'a1' has 64"),
        ((8,) * 4, "it was started for 3 adapters (max_cpu_loras), these are 4"),
    ],
)
def test_adapters_fit_by_their_number_and_ranks(ranks: tuple[int, ...], why: str | None) -> None:
    assert AdapterRoom(rank=16, at_once=1, kept=3).why_not(of_ranks(*ranks)) == why
