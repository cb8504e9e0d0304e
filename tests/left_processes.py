"""Fails a test that leaves processes behind, with their names, and ends them."""

import ctypes
import os
import signal
import time
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

PR_SET_CHILD_SUBREAPER = 36
PAUSE_SECONDS = 0.01
LONGEST_NAME = 200


class LeftProcesses:
    """A pytest plugin that looks for processes after each test, once its fixtures have ended.

    This process is the subreaper, so every orphan becomes its child. A test with a fixture of the whole module may
    start processes that belong to that fixture. They are looked for after the module's last test, and the failure
    names the test that started them.
    """

    def __init__(self, seconds_to_end=30.0):
        self._seconds_to_end = seconds_to_end  # for processes that have been told to end, or end by themselves
        self._of_session = set()
        self._of_module = set()
        self._before = set()
        self._begun_in = {}
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        before = living()
        try:
            return (yield)
        finally:
            if fixturedef.scope in {"module", "class"}:
                self._of_module |= living() - before
            else:
                self._of_session |= living() - before

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self):
        self._before = living()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item, nextitem):
        try:
            return (yield)
        finally:
            for pid in living(self._begun_in.keys()):
                self._begun_in[pid] = item.name
            if nextitem is None or nextitem.path != item.path:
                self._of_module, self._before = set(), set()
            elif has_fixture_of_module(item):
                self._of_module |= living()
            self._look_after(self._of_session | self._of_module | self._before)

    def pytest_unconfigure(self):
        end(living())

    def _look_after(self, allowed):
        deadline = time.monotonic() + self._seconds_to_end
        while (left := living(allowed)) and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
        names = [f"{name_of(pid)} (started in {self._begun_in.get(pid)})" for pid in left]
        end(left, allowed)
        bury()
        if names:
            pytest.fail(f"processes were left behind: {'; '.join(names)}", pytrace=False)


def has_fixture_of_module(item):
    found = item._fixtureinfo.name2fixturedefs
    return any(definition.scope in {"module", "class"} for name in found for definition in found[name])


def living(allowed=frozenset()):
    """Every running process below this one, except Python's own helper, the allowed ones, and their descendants."""
    skipped = allowed | {resource_tracker._resource_tracker._pid}
    found = set()
    queue = [os.getpid()]
    for pid in queue:  # grows during the walk
        children = [child for child in children_of(pid) if child not in skipped]
        queue.extend(children)
        found.update(child for child in children if state_of(child) not in "ZX")
    return found


def end(pids, allowed=frozenset()):
    """Kill these processes, and the orphans that they leave."""
    while pids:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)
        pids = living(allowed)


def bury():
    """Reap orphans that have ended. About a child that its test did not wait for, Python complains itself."""
    for pid in children_of(os.getpid()):
        if state_of(pid) == "Z":
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def children_of(pid):
    found = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # a thread that ends meanwhile must not hide the children of other threads
                found.extend(int(child) for child in (thread / "children").read_text().split())
    return found


def state_of(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def name_of(pid):
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{pid} {' '.join(words.split())[:LONGEST_NAME]}"
    return str(pid)
