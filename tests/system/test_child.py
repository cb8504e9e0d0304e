"""A signal to a child that has just ended takes nothing from who waits for its end."""

import asyncio
import logging
import os
import signal
import sys
import threading

from coe_server.system.child import signal_child
from tests.patience import PATIENCE_SECONDS


def test_a_signal_to_a_child_that_has_just_ended_leaves_its_exit_status_to_who_waits_for_it(monkeypatch, caplog):
    take, signalled = os.waitpid, threading.Event()

    def until_it_ends(pid):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def late(pid, options):
        if options == 0:  # asyncio's; it comes after the signal
            until_it_ends(pid)
            assert signalled.wait(PATIENCE_SECONDS)
        return take(pid, options)

    async def story():
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
        until_it_ends(process.pid)
        signal_child(process, signal.SIGTERM)
        signalled.set()
        return await asyncio.wait_for(process.wait(), PATIENCE_SECONDS)

    monkeypatch.setattr(os, "waitpid", late)
    caplog.set_level(logging.WARNING)
    assert asyncio.run(story()) == 7
    assert not caplog.records


def test_a_child_that_runs_gets_the_signal_and_one_that_has_ended_none():
    async def story():
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()")
        signal_child(process, signal.SIGKILL)
        status = await asyncio.wait_for(process.wait(), PATIENCE_SECONDS)
        signal_child(process, signal.SIGKILL)
        return status

    assert asyncio.run(story()) == -signal.SIGKILL
