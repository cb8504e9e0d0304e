"""The memory bandwidth of this machine: copies of a shared-memory file, measured once for each line on standard input.

    python copy_reference.py FILE SIZE_BYTES

Runs in vLLM's environment with an engine's number of threads. Each answer is a line of JSON, seconds of: `torch` and
`memcpy`, both into freshly mapped memory with MADV_HUGEPAGE; and `warm`, memcpy into memory that was written before.
"""

import ctypes
import json
import mmap
import sys
import time
from collections.abc import Callable

import torch

HUGE_PAGE = 2 << 20
libc = ctypes.CDLL(None)
libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Target:
    """Newly mapped memory, not touched yet, aligned to a huge page."""

    def __init__(self, size_bytes: int) -> None:
        self.mapping = mmap.mmap(-1, size_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        self.offset = -start % HUGE_PAGE
        self.address = start + self.offset
        libc.madvise(self.address, size_bytes, mmap.MADV_HUGEPAGE)

    def tensor(self, size_bytes: int) -> torch.Tensor:
        return torch.frombuffer(self.mapping, dtype=torch.uint8, count=size_bytes, offset=self.offset)


def main(path: str, size_bytes: int) -> None:
    """Measure once per line. The file is read before that, so that no measurement includes mapping its pages."""
    with open(path, "rb") as file:
        source = mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_COPY)
    tensor = torch.frombuffer(source, dtype=torch.uint8, count=size_bytes)
    tensor.sum(dtype=torch.int64)
    for _ in sys.stdin:
        answer = {"torch": fresh_torch(tensor), **fresh_and_warm_memcpy(tensor)}
        print(json.dumps(answer | {"threads": torch.get_num_threads()}), flush=True)


def fresh_torch(source: torch.Tensor) -> float:
    target = Target(source.nbytes)
    goal = target.tensor(source.nbytes)
    return seconds(lambda: goal.copy_(source))


def fresh_and_warm_memcpy(source: torch.Tensor) -> dict[str, float]:
    target = Target(source.nbytes)

    def copy() -> object:
        return libc.memcpy(target.address, source.data_ptr(), source.nbytes)

    return {"memcpy": seconds(copy), "warm": seconds(copy)}


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
