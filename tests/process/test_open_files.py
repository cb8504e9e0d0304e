from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from coe_server.process.open_files import ENOUGH, allow_many_open_files


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
