"""The stand-ins' server answers an HTTP client as aiohttp's would."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests import small_web as web
from tests.patience import PATIENCE_SECONDS


class Stories:
    def __init__(self):
        self.asked = asyncio.Event()
        self.told = asyncio.Event()

    async def whole(self, request):
        return web.json_response({"query": request.query, "asked": await request.json()}, headers={"X-A": "b"})

    async def pieces(self, request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in (b"one\n", b"two\n"):
            await response.write(piece)
        return response

    async def fails(self, request):
        raise ValueError("not today")

    async def waits(self, request):
        self.asked.set()
        await self.told.wait()
        return web.Response(text="at last")


@asynccontextmanager
async def served(folder, **more):
    stories, app = Stories(), web.Application()
    routes = [web.post("/whole", stories.whole), web.post("/pieces", stories.pieces), web.get("/waits", stories.waits)]
    app.add_routes([*routes, web.get("/fails", stories.fails)])
    runner = web.AppRunner(app, **more)
    await web.UnixSite(runner, str(folder / "socket")).start()
    connector = aiohttp.UnixConnector(str(folder / "socket"), limit=1)
    async with aiohttp.ClientSession("http://engine", connector=connector) as client:
        yield stories, client, runner
    await runner.cleanup()


def run(story):
    asyncio.run(asyncio.wait_for(story, PATIENCE_SECONDS))


def test_answers_whole_and_in_pieces_come_over_one_connection(tmp_path):
    async def story():
        async with served(tmp_path) as (_, client, runner):
            for _ in range(2):
                async with client.post("/whole?level=1&mode=wait", json={"a": 1}) as answer:
                    assert await answer.json() == {"query": {"level": "1", "mode": "wait"}, "asked": {"a": 1}}
                    assert (answer.status, answer.headers["x-a"]) == (200, "b")
                async with client.post("/pieces") as answer:
                    assert (await answer.read(), answer.content_type) == (b"one\ntwo\n", "text/event-stream")
            assert len(runner._connections) == 1

    run(story())


@pytest.mark.parametrize(("path", "status", "text"), [("/fails", 500, "not today"), ("/gone", 404, "Not Found")])
def test_a_mistake_is_an_answer_and_the_next_one_comes(tmp_path, path, status, text):
    async def story():
        async with served(tmp_path) as (_, client, _):
            for _ in range(2):
                async with client.get(path) as answer:
                    assert answer.status == status
                    assert text in await answer.text()

    run(story())


def test_an_answer_in_progress_is_finished_before_the_server_ends(tmp_path):
    async def story():
        async with served(tmp_path) as (stories, client, runner):
            asking = asyncio.create_task(client.get("/waits"))
            await stories.asked.wait()
            ending = asyncio.create_task(runner.cleanup())
            stories.told.set()
            assert await (await asking).text() == "at last"
            await ending

    run(story())


def test_a_connection_that_is_not_used_is_closed_in_time(tmp_path):
    async def story():
        async with served(tmp_path, keepalive_timeout=0.01):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
            assert await reader.read() == b""
            writer.close()

    run(story())
