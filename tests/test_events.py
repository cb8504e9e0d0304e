"""The event log is bounded for each kind, told in order, and can be resumed even after a restart."""

import asyncio

from coe_server.events import EventLog


async def told(log, seq):
    log.close()
    return [event.seq for event in [event async for event in log.after(seq)]]


def test_many_decisions_do_not_push_out_the_moves():
    async def story():
        log = EventLog(keep=3)
        log.record("move", expert="a")
        for _ in range(10):
            log.record("decision", expert="a")
        assert await told(log, 0) == [1, 9, 10, 11]

    asyncio.run(story())


def test_a_reader_resumes_where_it_was_and_one_from_another_life_starts_anew():
    async def story():
        log = EventLog()
        for _ in range(3):
            log.record("move", expert="a")
        assert await told(log, 2) == [3]
        assert await told(log, 3) == []
        assert await told(log, 400) == [1, 2, 3]

    asyncio.run(story())


def test_a_reader_gets_what_happens_while_it_reads():
    async def story():
        log = EventLog()
        seen = []

        async def read():
            async for event in log.after(0):
                seen.append(event.kind)

        reader = asyncio.create_task(read())
        for kind in ("move", "switch", "failure"):
            log.record(kind)
            await asyncio.sleep(0)
        log.close()
        await reader
        assert seen == ["move", "switch", "failure"]

    asyncio.run(story())
