"""Weight files are found where they lie, read as far as memory allows, and given up within a chunk."""

import asyncio
import ctypes
import mmap
import os
import threading

import pytest

from coe_server.engines.memory import available_host_bytes, free_host_bytes
from coe_server.engines.page_cache import PageCache
from coe_server.engines.weight_files import downloaded_files, weight_files
from tests.patience import PATIENCE_SECONDS

MIB = 2**20


def pages_in_memory(path):
    """How many of a file's pages the kernel holds."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        number = -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * number)()
        address = (ctypes.c_char * len(mapped)).from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(len(mapped)), found)
        del address
        assert not failed, os.strerror(ctypes.get_errno())
        return sum(one & 1 for one in found)


def forget(path):
    """Have the kernel drop what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(10 * MIB))
    return path


@pytest.mark.parametrize(("free", "kept", "read"), [(100, 0, 10), (100, 95, 4), (100, 97, 0), (3, 50, 0)])
def test_as_much_is_read_as_memory_allows(weights, free, kept, read):
    cache = PageCache({"a": lambda: [weights]}, lambda: free * MIB)
    assert asyncio.run(cache.read("a", kept * MIB)) == read * MIB
    assert asyncio.run(cache.read("somebody remote", 0)) == 0


def test_what_was_read_is_in_memory(weights):
    forget(weights)
    if pages_in_memory(weights):
        pytest.skip("this file system keeps files in memory whatever it is told")
    asyncio.run(PageCache({"a": lambda: [weights]}, lambda: 100 * MIB).read("a", 0))
    assert pages_in_memory(weights) * mmap.PAGESIZE == 10 * MIB


def test_whoever_cancels_waits_for_one_chunk_at_most(weights):
    found, go_on = threading.Event(), threading.Event()
    opened = []

    def files():
        found.set()
        go_on.wait(PATIENCE_SECONDS)
        for _ in range(1000):
            opened.append(weights)
            yield weights

    async def story():
        reading = asyncio.create_task(PageCache({"a": files}, lambda: 100_000 * MIB).read("a", 0))
        await asyncio.to_thread(found.wait, PATIENCE_SECONDS)
        reading.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(story())
    assert len(opened) == 1


def test_weights_are_found_in_a_folder_and_in_the_hubs_cache(tmp_path):
    model = tmp_path / "model"
    snapshot = tmp_path / "hub/models--some--model/snapshots/abc"
    for folder in (model, snapshot):
        folder.mkdir(parents=True)
        for name in ("2.safetensors", "1.safetensors", "old.bin", "config.json"):
            (folder / name).touch()
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc\n")
    assert [path.name for path in weight_files(model)] == ["1.safetensors", "2.safetensors"]
    assert downloaded_files(str(model), {}) == weight_files(model)
    for environment in ({"HF_HUB_CACHE": f"{tmp_path}/hub"}, {"HF_HOME": str(tmp_path)}):
        assert downloaded_files("some/model", environment) == weight_files(snapshot) != []
    assert downloaded_files("some/other", {"HF_HOME": str(tmp_path)}) == []


@pytest.mark.parametrize(
    ("limit", "used", "free"), [("max", 5, 4096), ("3000000", 1000000, 2000000), ("9000000", 1, 4096 * 1024)]
)
def test_what_is_free_is_what_the_kernel_or_the_control_group_leaves(tmp_path, limit, used, free):
    (tmp_path / "meminfo").write_text("MemTotal:  8192 kB\nMemAvailable:    4096 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    assert free_host_bytes(tmp_path, tmp_path) == (free * 1024 if limit == "max" else free)


@pytest.mark.parametrize(
    ("groups", "folder", "files"),
    [
        ("0::/system.slice/coe.service", "system.slice/coe.service", ("memory.max", "memory.current")),
        ("0::/system.slice/coe.service", "system.slice", ("memory.max", "memory.current")),
        ("0::/", "", ("memory.max", "memory.current")),
        (
            "5:cpu,memory:/coe\n1:name=systemd:/\n0::/",
            "memory/coe",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
        ("5:memory:/docker/1234", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_the_limit_of_the_service_counts_as_that_of_a_container_does(tmp_path, groups, folder, files):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  8192 kB\nMemAvailable:    4096 kB\n")
    (proc / "self/cgroup").write_text(f"{groups}\n")
    place, elsewhere = cgroups / folder, cgroups / "other.service"
    for group, limit in ((place, "3000000"), (elsewhere, "1000000")):
        group.mkdir(parents=True, exist_ok=True)
        (group / files[0]).write_text(f"{limit}\n")
        (group / files[1]).write_text("500000\n")
    assert available_host_bytes(proc, cgroups) == 3_000_000
    assert free_host_bytes(proc, cgroups) == 2_500_000
