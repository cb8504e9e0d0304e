"""The image as the worker writes and reads it: complete and unchanged, or not used at all."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from coe_weight_image import Block, Image, Layout, aligned, digest
from hypothesis import given
from hypothesis import strategies as st

DATA = random.Random(0).randbytes((5 << 20) + 3)
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
LAYOUT = Layout((Block((), len(DATA)).at(0, aligned(len(DATA))),))  # a worker writes whole arenas


@dataclass
class Offered:
    """An empty memfd, as a server offers it to an engine."""

    descriptor: int

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.descriptor}"


@contextmanager
def offered() -> Iterator[Offered]:
    descriptor = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    yield Offered(descriptor)
    os.close(descriptor)


@pytest.fixture
def owner() -> Iterator[Offered]:
    with offered() as memory:
        yield memory


def written(owner: Offered) -> Image:
    image = Image(owner.path)
    image.write(memoryview(DATA.ljust(LAYOUT.size_bytes, b"\0")), LAYOUT, "these files")
    return image


def test_what_one_life_wrote_the_next_one_reads(owner: Offered) -> None:
    written(owner)
    assert fcntl.fcntl(owner.descriptor, fcntl.F_GET_SEALS) & SEALS == SEALS
    later = Image(owner.path)
    assert later.left_from("these files") == LAYOUT
    assert later.size_bytes == os.fstat(owner.descriptor).st_size
    assert ctypes.string_at(later.address, len(DATA)) == DATA


def test_the_writer_can_read_it_at_once(owner: Offered) -> None:
    image = written(owner)
    assert (image.present, image.writes) == (True, 1)
    assert ctypes.string_at(image.address, len(DATA)) == DATA


def test_an_empty_image_an_absent_one_and_one_of_other_files_are_not_used(owner: Offered) -> None:
    assert Image(None).left_from("these files") is None
    assert Image(owner.path).left_from("these files") is None
    written(owner)
    assert Image(owner.path).left_from("those files") is None


def test_without_a_place_to_write_to_the_engine_cannot_sleep() -> None:
    with pytest.raises(RuntimeError, match="this engine cannot sleep: no image was offered"):
        Image(None).write(memoryview(b""), Layout(()), "")


def flip_a_bit(content: bytearray) -> None:
    content[1_000_000] ^= 1


def lose_the_end(content: bytearray) -> None:
    del content[-1:]


def lose_all(content: bytearray) -> None:
    content.clear()


def swap_two_huge_pages(content: bytearray) -> None:
    content[0 : 2 << 20], content[2 << 20 : 4 << 20] = content[2 << 20 : 4 << 20], content[0 : 2 << 20]


@pytest.mark.parametrize("damage", [flip_a_bit, lose_the_end, lose_all, swap_two_huge_pages])
def test_a_damaged_image_is_not_used(owner: Offered, damage: Callable[[bytearray], None]) -> None:
    written(owner)
    with open(owner.path, "rb") as file:
        content = bytearray(file.read())
    damage(content)
    with offered() as damaged:
        os.write(damaged.descriptor, content)
        fcntl.fcntl(damaged.descriptor, fcntl.F_ADD_SEALS, SEALS)
        image = Image(damaged.path)
        assert image.left_from("these files") is None
        assert not image.present


@given(st.binary(max_size=40), st.integers(0, 39), st.integers(1, 255))
def test_the_digest_changes_with_any_byte_and_with_the_length(data: bytes, place: int, change: int) -> None:
    assert digest(memoryview(data)) == digest(memoryview(bytes(data)))
    assert digest(memoryview(data)) != digest(memoryview(data + b"\0"))
    if place < len(data):
        changed = bytearray(data)
        changed[place] ^= change
        assert digest(memoryview(data)) != digest(memoryview(bytes(changed)))
