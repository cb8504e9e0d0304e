"""What /proc tells about processes."""

from __future__ import annotations

import os
import subprocess
import sys

from coe_server.engines.memory import private_bytes, process_tree, session_members

GROW = 64 << 20
CHILD = f"""
import mmap, sys
memory = mmap.mmap(-1, {GROW}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for order in sys.stdin:
    if order == "fill\\n":
        memory[:] = bytes(1) * {GROW}
    else:
        memory.madvise(mmap.MADV_DONTNEED)
    print("done", flush=True)
"""
PARENT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"


def test_private_bytes_follow_what_a_grandchild_holds() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None

        def order(word: str) -> int:
            assert parent.stdin is not None
            assert parent.stdout is not None
            print(word, file=parent.stdin, flush=True)
            assert parent.stdout.readline() == "done\n"
            return private_bytes(parent.pid)

        empty, full, freed = order("free"), order("fill"), order("free")
        assert len(process_tree(parent.pid)) == 2
    assert full - empty >= GROW
    assert full - freed >= GROW


def test_a_process_that_is_gone_holds_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert process_tree(gone.pid) == []
    assert private_bytes(gone.pid) == 0


def test_a_session_has_its_members_and_no_others() -> None:
    command = [sys.executable, "-c", PARENT, "import sys; print('up', flush=True); sys.stdin.read()"]
    leader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True)
    with leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "up\n"
        members = session_members(leader.pid)
        assert sorted(members) == sorted(process_tree(leader.pid))
        assert os.getpid() not in members
    assert session_members(leader.pid) == []
