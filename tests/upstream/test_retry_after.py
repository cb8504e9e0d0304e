"""Retry-After as servers send it: seconds or a date, and nonsense."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.upstream.reply import LONGEST_SECONDS, backoff_seconds, repeated, retry_after_seconds

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
PIECES = st.sampled_from(
    ("Mon, ", "04 ", "May ", "2026 ", "03:02:01 ", "GMT", "-0000", "+2400", "+9999999999999999999")
)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, None),
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("86401", LONGEST_SECONDS),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
        (format_datetime(NOW + timedelta(days=900), usegmt=True), LONGEST_SECONDS),
        ("Mon, 04 May 2026 05:03:01 +0200", 60),
        ("Mon, 04 May 2026 03:03:01 -0000", 60),
        ("Mon, 04 May 2026 03:03:01 +9999999999999999999", None),
    ],
)
def test_it_is_seconds_or_a_date_and_at_most_a_day(header, seconds):
    assert retry_after_seconds(header, NOW) == seconds


@given(st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=30))
def test_any_header_is_so_many_seconds_or_says_nothing(header):
    seconds = retry_after_seconds(header, NOW)
    assert seconds is None or 0 <= seconds <= LONGEST_SECONDS


def test_a_request_is_repeated_until_no_pause_follows() -> None:
    results = iter(["busy", "busy", "done"])

    async def attempt() -> str:
        return next(results)

    def pause_seconds(result: str, attempts: int) -> float | None:
        asked.append((result, attempts))
        return None if result == "done" else 0.0

    asked: list[tuple[str, int]] = []
    assert asyncio.run(repeated(attempt, pause_seconds)) == ("done", 3)
    assert asked == [("busy", 1), ("busy", 2), ("done", 3)]


def test_pauses_double_up_to_the_longest() -> None:
    assert [backoff_seconds(attempts, 0.5, 3.0) for attempts in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]
