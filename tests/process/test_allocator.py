"""What the C library itself says of its arenas."""

import platform
import subprocess
import sys

import pytest

ALLOCATE_IN_THREADS = """
import ctypes, sys, threading
from coe_server.process.allocator import share_one_arena
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_threads_share_one_arena_once_they_are_told_to():
    def arenas(how):
        done = subprocess.run(
            [sys.executable, "-c", ALLOCATE_IN_THREADS, how], capture_output=True, text=True, timeout=30, check=True
        )
        return done.stderr.count("Arena ")

    assert arenas("as it is") > 1
    assert arenas("shared") == 1
