"""A vLLM worker for the CPU that can sleep: weights and KV cache leave this process's memory and come back.

Runs inside vLLM's environment (`--worker-cls coe_sleeping_worker.SleepingWorker`), so it imports nothing of ours and
stays alone in its folder. Weights live in one arena whose addresses never change; the first sleep writes the arena
to the image the server offers in COE_WEIGHT_IMAGE, every later one only gives pages back.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from vllm import _custom_ops
from vllm.model_executor.layers import utils as linear_layers
from vllm.v1.worker.cpu_worker import CPUWorker

# oneDNN and the AMX kernels keep a packed copy of every linear layer in C++ where no sleep can reach it. Without them
# torch multiplies with the parameters themselves. The price, measured with 160 million parameters on two AVX-512 cores:
# one stream decodes 36 tokens/s instead of 68, eight streams 232 instead of 337, a long prompt takes as long as before.
_custom_ops._supports_onednn = False
linear_layers.check_cpu_sgl_kernel = lambda n, k, dtype: False

IMAGE_VARIABLE = "COE_WEIGHT_IMAGE"
TAGS = ("weights", "kv_cache")

_CACHE_LINE = 64
_HUGE_PAGE = 2 << 20
_IO_BYTES = 256 << 20  # Linux moves at most 2 GiB in one call
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python's mmap does not name it
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_PR_SET_PDEATHSIG = 1


class SleepingWorker(CPUWorker):
    """vLLM's CPU worker with `sleep(level=1)` and `wake_up(tags)` that really move memory."""

    _weights: WeightArena
    _image: Image
    _kv_pages: list[Pages]
    _kv_cache_bytes = 0
    _last_sleep_seconds = 0.0
    _last_wake_seconds = 0.0

    def load_model(self, **options: Any) -> None:
        # Die with the API server, which forked us from its main thread: the keeper sees to that too, but somebody may
        # kill the keeper and the server at the same instant.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        super().load_model(**options)
        self._weights = WeightArena(self.model_runner.get_model())
        self._image = Image(os.environ.get(IMAGE_VARIABLE))
        _libc.malloc_trim(0)  # the loader's copies are free now; hand them back before anyone measures us

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        storages = list(unique_storages(flat_tensors(self.model_runner.kv_caches)))
        self._kv_cache_bytes = sum(storage.nbytes() for storage in storages)
        self._kv_pages = [Pages.inside(storage.data_ptr(), storage.nbytes()) for storage in storages]
        for pages in self._kv_pages:
            pages.advise(mmap.MADV_HUGEPAGE)
            pages.release()  # zeros in small pages; huge ones take their place here instead of in the first wake
            pages.populate()  # what the server reserved for us is held from the start, not from the first long answer

    def sleep(self, level: int = 1) -> None:
        if level != 1:
            raise RuntimeError(f"sleep level {level} is refused: only level 1 keeps the weights")
        started = time.perf_counter()
        self._image.write_once(self._weights.view)
        self._weights.pages.release()
        self.discard(("kv_cache",))
        self._last_sleep_seconds = time.perf_counter() - started

    def wake_up(self, tags: list[str] | None = None) -> None:
        started = time.perf_counter()
        if tags is None or "weights" in tags:
            self._image.read_into(self._weights.pages)
        if tags is None or "kv_cache" in tags:
            for pages in self._kv_pages:
                pages.populate()
        self._last_wake_seconds = time.perf_counter() - started

    def discard(self, tags: tuple[str, ...]) -> None:
        if tags != ("kv_cache",):
            raise RuntimeError(f"cannot discard {tags}: only the KV cache can be lost")
        for pages in self._kv_pages:
            pages.release()

    def memory_report(self) -> dict[str, float]:
        """Exact sizes and the last times, for the server (`/collective_rpc`)."""
        wake_bytes = self._weights.size_bytes + self._kv_cache_bytes
        return {
            "weights_bytes": self._weights.size_bytes,
            "kv_cache_bytes": self._kv_cache_bytes,
            "image_bytes": self._image.size_bytes,
            "image_writes": self._image.writes,
            "last_sleep_seconds": self._last_sleep_seconds,
            "last_wake_seconds": self._last_wake_seconds,
            "last_wake_bytes_per_second": wake_bytes / self._last_wake_seconds if self._last_wake_seconds else 0.0,
        }


class Pages:
    """Whole pages of private memory, given back and taken again at the same address."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address = address
        self.size_bytes = size_bytes

    @classmethod
    def inside(cls, address: int, size_bytes: int) -> Pages:
        """The whole pages of a block that somebody else allocated; its ragged ends stay."""
        first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        return cls(first, max(0, end - first))

    def release(self) -> None:
        """Give the memory to the system at once; the next read finds zeros."""
        if not self.advise(mmap.MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise(MADV_DONTNEED) failed: the memory was not given back")

    def populate(self) -> None:
        """Hold every page now, so that no later step can run out of memory or wait for page faults."""
        if not self.advise(_MADV_POPULATE_WRITE):
            for offset in range(0, self.size_bytes, mmap.PAGESIZE):
                byte = ctypes.c_ubyte.from_address(self.address + offset)
                byte.value = byte.value  # an older kernel: touch each page, keep what it holds

    def advise(self, advice: int) -> bool:
        return self.size_bytes == 0 or _libc.madvise(self.address, self.size_bytes, advice) == 0


class WeightArena:
    """All parameters and buffers of a model in one private mapping of their exact size."""

    def __init__(self, model: torch.nn.Module) -> None:
        tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if movable(tensor)]
        storages = list(unique_storages(tensors))
        offsets: dict[int, int] = {}
        self.size_bytes = 0
        for storage in storages:
            offsets[storage.data_ptr()] = self.size_bytes
            self.size_bytes += -(-storage.nbytes() // _CACHE_LINE) * _CACHE_LINE
        self._map()
        for storage in storages:
            self._bytes(offsets[storage.data_ptr()], storage.nbytes()).copy_(as_bytes(storage))
        for tensor in tensors:  # tied weights share a storage and go on sharing it
            storage = tensor.untyped_storage()
            moved = self._bytes(offsets[storage.data_ptr()], storage.nbytes()).view(tensor.dtype)
            tensor.data = moved.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def _map(self) -> None:
        mapped_bytes = max(1, self.size_bytes) + _HUGE_PAGE  # room to start on a huge page
        self._mapping = mmap.mmap(-1, mapped_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self._start = -address % _HUGE_PAGE
        self.view = memoryview(self._mapping)[self._start : self._start + self.size_bytes]
        page_bytes = -(-self.size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.pages = Pages(address + self._start, page_bytes)
        # Only whole huge pages: the tail must not round a 300 KB model up to 2 MiB.
        Pages(self.pages.address, page_bytes // _HUGE_PAGE * _HUGE_PAGE).advise(mmap.MADV_HUGEPAGE)
        self.pages.populate()

    def _bytes(self, offset: int, size_bytes: int) -> torch.Tensor:
        return torch.frombuffer(self._mapping, dtype=torch.uint8, count=size_bytes, offset=self._start + offset)


class Image:
    """The write-once copy of the arena in the server's memfd."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._address = 0
        self.size_bytes = 0
        self.writes = 0

    def write_once(self, view: memoryview) -> None:
        if self.writes:
            return
        if not self._path:
            raise RuntimeError(f"this engine cannot sleep: no image was offered in {IMAGE_VARIABLE}")
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, len(view))
            for start in range(0, len(view), _IO_BYTES):
                write_all(descriptor, view[start : start + _IO_BYTES], start)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            # Private only because ctypes wants to see a writable buffer; nobody writes, so nothing is ever copied.
            self._mapping = mmap.mmap(descriptor, len(view), access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.size_bytes = len(view)
        self.writes = 1

    def read_into(self, pages: Pages) -> None:
        """Copy in steps of a huge page, each taken just before it is filled: its zeros are still in the cache then.

        Twice as fast as reading the file (11 GB/s against 5.5, one thread): the kernel's copy goes through the cache,
        the C library's goes past it.
        """
        for offset in range(0, self.size_bytes, _HUGE_PAGE):
            step_bytes = min(_HUGE_PAGE, self.size_bytes - offset)
            Pages(pages.address + offset, step_bytes).populate()
            _libc.memcpy(pages.address + offset, self._address + offset, step_bytes)


def write_all(descriptor: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count


def movable(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > 0


def flat_tensors(caches: Any) -> Iterator[torch.Tensor]:
    """vLLM's KV caches are tensors, or lists of them for state-space layers."""
    for cache in caches:
        if isinstance(cache, torch.Tensor):
            yield cache
        elif isinstance(cache, list | tuple):
            yield from flat_tensors(cache)


def unique_storages(tensors: Any) -> Iterator[torch.UntypedStorage]:
    seen: set[int] = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage


def as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
