from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from coe_server.system.process import ENOUGH, QUIET_SECONDS, OpenFilesWatch, allow_many_open_files


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_low_limit_is_raised_as_far_as_may_be(limits: tuple[int, int]) -> None:
    hard = limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    allow_many_open_files()
    raised = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, hard)
    allow_many_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, hard)


def test_a_line_says_when_no_more_files_can_be_opened_and_not_again_within_a_minute(
    limits: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    watch = OpenFilesWatch(lambda: now[0])
    watch.look()
    assert caplog.messages == []
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    for now[0] in (1.0, 30.0, 1.0 + QUIET_SECONDS):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        watch.look()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(caplog.messages) == 2
    assert f"the limit of open files, connections included, is reached ({lowest} for this process" in caplog.messages[0]
