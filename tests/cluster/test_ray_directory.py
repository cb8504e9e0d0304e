"""A front's directory of nodes on Ray, with a program of the test's own in place of the one that asks Ray."""

import asyncio
import importlib.util
import json
import logging
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import pytest

from coe_server.cluster.directory import NodeAddress
from coe_server.cluster.ray_directory import RayDirectory, ReaderEnded, ray_reader, read_line
from tests.patience import PATIENCE_SECONDS

LEFT, RIGHT = (NodeAddress(name, f"http://10.0.0.{at}:8081") for at, name in enumerate(("left", "right")))


def line_of(*nodes):
    return json.dumps({"nodes": [{"name": one.name, "url": one.url} for one in nodes]})


STAND_IN = """
import json, pathlib, signal, sys
script, count = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
run = int(count.read_text()) if count.exists() else 0
count.write_text(str(run + 1))
runs = json.loads(script.read_text())
sys.stdout.write("".join(line + "\\n" for line in runs[run]))
sys.stdout.flush()
if run + 1 == len(runs):
    signal.pause()
"""


@pytest.fixture
def reader(tmp_path):
    """The command of a stand-in for the reader: of each run the lines that it says; the last run goes on."""

    def scripted(*runs):
        (tmp_path / "script").write_text(json.dumps(runs))
        return (sys.executable, "-c", STAND_IN, str(tmp_path / "script"), str(tmp_path / "count"))

    return scripted


class Changes:
    """Counts the calls of `changed`, and waits for the next one."""

    def __init__(self):
        self.count = 0
        self._more = asyncio.Condition()
        self._tasks = []

    def __call__(self):
        self.count += 1
        self._tasks.append(asyncio.create_task(self._tell()))

    async def _tell(self):
        async with self._more:
            self._more.notify_all()

    async def until(self, count):
        async with asyncio.timeout(PATIENCE_SECONDS), self._more:
            await self._more.wait_for(lambda: self.count >= count)


@asynccontextmanager
async def running(directory, changes):
    task = asyncio.create_task(directory.run(changes))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_addresses_are_known_once_told_and_a_change_is_announced_once(reader):
    async def story():
        directory, changes = (
            RayDirectory(reader([line_of(LEFT), "", line_of(LEFT), line_of(LEFT, RIGHT)]), 0.01),
            Changes(),
        )
        assert directory.addresses() == ()
        async with running(directory, changes):
            await changes.until(2)
            assert directory.addresses() == (LEFT, RIGHT)
            assert changes.count == 2

    asyncio.run(story())


def test_the_last_addresses_hold_while_ray_is_away_and_why_is_logged_once(reader, caplog):
    caplog.set_level(logging.WARNING)
    away = [json.dumps({"failed": "no Ray cluster there"})]
    seen = []

    async def story():
        directory, changes = RayDirectory(reader([line_of(LEFT)], away, away, away, [line_of(RIGHT)]), 0.01), Changes()
        async with running(directory, lambda: (seen.append(directory.addresses()), changes())):
            await changes.until(2)

    asyncio.run(story())
    assert seen == [(LEFT,), (RIGHT,)]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"Ray's directory of nodes cannot be read; the last addresses hold: {why}"
        for why in ("its reader has ended", "no Ray cluster there")
    ]


def test_a_cancelled_directory_leaves_no_process(reader):
    async def story():
        changes = Changes()
        async with running(RayDirectory(reader([line_of(LEFT)])), changes):
            await changes.until(1)

    asyncio.run(story())  # the suite looks for what is left


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "has ended"),
        ("Traceback (most recent call last):\n", "is not valid"),
        ('{"nodes": [{"name": "a b", "url": "http://10.0.0.1:8081"}]}\n', "is not valid"),
        ('{"nodes": [{"name": "left", "url": "file:///etc/passwd"}]}\n', "is not valid"),
        ('{"failed": "no cluster"}\n', "no cluster"),
        (line_of(LEFT, NodeAddress("left", "http://10.0.0.2:8081")), "same name"),
    ],
)
def test_a_line_that_is_no_list_of_nodes_is_refused(line, reason):
    with pytest.raises(ReaderEnded, match=reason):
        read_line(line.encode())


def test_an_empty_line_says_that_nothing_has_changed():
    assert read_line(b"\n") is None


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is here")
def test_without_ray_the_reader_says_what_to_install():
    done = subprocess.run(ray_reader("auto"), capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    with pytest.raises(ReaderEnded, match="it comes with the extra `ray`"):
        read_line(done.stdout)
