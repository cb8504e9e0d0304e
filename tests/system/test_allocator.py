"""What the C library itself says of its arenas."""

import platform
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_SECONDS

ALLOCATE_IN_THREADS = """
import ctypes, sys, threading
from coe_server.system.process import share_one_arena
assert sys.argv[1] == "as it is" or share_one_arena()
libc, together = ctypes.CDLL(None), threading.Barrier(4)
def allocate():
    libc.malloc(5000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_stats()
"""

FREE_ALL_BUT_THE_LAST = """
import ctypes, os, resource
from pathlib import Path
from coe_server.system.process import give_back_free_memory
libc, size, resident = ctypes.CDLL(None), 100_000, Path("/proc/self/statm")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
chunks = [libc.malloc(size) for _ in range(400)]
for chunk in chunks: ctypes.memset(chunk, 1, size)
for chunk in chunks[:-1]: libc.free(chunk)
before = int(resident.read_text().split()[1])
assert give_back_free_memory()
print((before - int(resident.read_text().split()[1])) * resource.getpagesize())
"""
of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")


@of_glibc
def test_threads_share_one_arena_once_they_are_told_to():
    def arenas(how):
        done = subprocess.run(
            [sys.executable, "-c", ALLOCATE_IN_THREADS, how],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        return done.stderr.count("Arena ")

    assert arenas("as it is") > 1
    assert arenas("shared") == 1


@of_glibc
def test_what_is_free_in_the_midst_of_an_arena_goes_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-c", FREE_ALL_BUT_THE_LAST],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert int(done.stdout) > 35_000_000
