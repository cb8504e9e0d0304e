"""The image: written once by somebody else, then never again by anybody."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys

import pytest

from coe_server.engines.image import WeightImage

WRITER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.ftruncate(file, 10_001)
os.pwrite(file, b"weights", 0)
fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
"""


def test_another_process_writes_and_seals_it_and_the_size_is_exact() -> None:
    image = WeightImage("french")
    assert (image.size_bytes, image.sealed) == (0, False)
    subprocess.run([sys.executable, "-c", WRITER, image.path], check=True)
    assert (image.size_bytes, image.sealed) == (10_001, True)
    with open(image.path, "rb") as file:
        assert file.read(7) == b"weights"
    image.close()


def test_a_sealed_image_cannot_be_changed_shortened_or_lengthened() -> None:
    image = WeightImage("french")
    subprocess.run([sys.executable, "-c", WRITER, image.path], check=True)
    file = os.open(image.path, os.O_RDWR)
    for change in (
        lambda: os.pwrite(file, b"x", 0),
        lambda: os.ftruncate(file, 1),
        lambda: os.ftruncate(file, 20_000),
        lambda: mmap.mmap(file, 4096, flags=mmap.MAP_SHARED),
    ):
        with pytest.raises(PermissionError):
            change()
    os.close(file)
    image.close()


def test_a_half_sealed_image_does_not_count_as_sealed() -> None:
    image = WeightImage("french")
    file = os.open(image.path, os.O_RDWR)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    assert not image.sealed
    os.close(file)
    image.close()


def test_a_closed_image_is_empty_and_may_be_closed_again() -> None:
    image = WeightImage("a name longer than Linux allows " * 20)
    image.close()
    image.close()
    assert (image.size_bytes, image.sealed) == (0, False)
    assert not os.path.exists(image.path)


def test_a_renewed_image_is_empty_and_can_be_written_again_at_the_same_path() -> None:
    image = WeightImage("french")
    path = image.path
    subprocess.run([sys.executable, "-c", WRITER, path], check=True)
    image.renew()
    assert (image.path, image.size_bytes, image.sealed) == (path, 0, False)
    subprocess.run([sys.executable, "-c", WRITER, path], check=True)
    assert (image.size_bytes, image.sealed) == (10_001, True)
    image.close()
