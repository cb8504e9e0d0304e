"""A whole server whose experts come, change and go under a crowd: no request fails but for a name that is gone."""

import asyncio
import json
import random
import re
from dataclasses import dataclass, field

import aiohttp
import pytest
import yaml

from coe_server.routing import artifact as artifacts
from tests.patience import PATIENCE_SECONDS
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact
from tests.test_reload import reload, serving, settings

QUICK = {"start_seconds": 0.05, "wake_seconds": 0.01, "sleep_seconds": 0.01, "ttft_seconds": 0.01}
QUICK |= {"engine": "simulated", "weights_bytes": "10MiB", "tokens_per_second": 400}
ROUTED, NEW = tuple(SIZES), ("n1", "n2", "n3", "n4", "n5")
QUIET = ("steady", "still", "fading", "waning", "changing", "turning")
GOING = (ROUTED[-1], "fading", "waning")


@dataclass
class Crowd:
    """Clients that ask until they are told to stop, and what they got."""

    url: str
    names: list[str]  # that may be asked for now
    gone: set[str] = field(default_factory=set)  # that may be refused from now on
    streams: dict = field(default_factory=dict)  # (expert, question) -> the bytes of every answer, without times
    refused: int = 0
    answered: int = 0
    faults: list = field(default_factory=list)
    over: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, seed, session):
        chance = random.Random(seed)
        while not self.over:
            await self.ask(session, chance.choice([*self.names, *sorted(self.gone), "auto"]), chance.randrange(3))

    async def ask(self, session, model, question):
        text = f"{TEXTS['code']} {question}{' and on' * 10}"
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            raw = await answer.read()
        if answer.status == 404 and model in self.gone and json.loads(raw)["error"]["code"] == "model_not_found":
            self.refused += 1
        elif answer.status != 200 or not raw.endswith(b"data: [DONE]\n\n"):
            self.faults.append((model, answer.status, raw[:300]))
            self.news.set()
        else:
            self.answered += 1
            key = answer.headers["x-coe-expert"], question
            self.news.set()
            self.streams.setdefault(key, set()).add(re.sub(rb'"created": ?\d+|: coe [^\n]*\n\n', b"", raw))

    async def answers(self, number):
        """Wait for so many more."""
        goal = self.answered + number
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.answered < goal and not self.faults:
                self.news.clear()
                await self.news.wait()


def experts(names, **changes):
    return [{"name": name, **QUICK, **changes.get(name, {})} for name in names]


@pytest.mark.parametrize("clients", [24, pytest.param(200, marks=pytest.mark.long)])
def test_five_experts_come_three_go_and_two_change_under_a_crowd(tmp_path, clients):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    memory = {"memory": {"device": "60MiB", "host": "1GiB"}}
    limits = {"scheduling": {"max_wait_seconds": 0.5, "queue_limit": 1000, "max_concurrency": 8}}
    base = {**memory, **limits}
    with serving(tmp_path, experts=experts((*ROUTED, *QUIET)), **base) as (process, port, config, log):

        async def turn(crowd, names, **changes):
            config.write_text(yaml.safe_dump(settings(port, experts=experts(names, **changes), **base)))
            crowd.gone |= set(GOING) - set(names)
            told = (await asyncio.to_thread(reload, port))["experts"]
            crowd.names = [name for name in names if name not in crowd.gone]
            return told

        async def story():
            crowd = Crowd(f"http://127.0.0.1:{port}", [*ROUTED, *QUIET])
            every = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=every) as session, asyncio.TaskGroup() as tasks:
                for number in range(clients):
                    tasks.create_task(crowd.client(number, session))
                await crowd.answers(3 * clients)
                names, changes = [*ROUTED, *QUIET], {}
                for step, new in enumerate(NEW):
                    names = [*names, new]
                    if step < len(GOING):
                        names.remove(GOING[step])
                    else:
                        changes[QUIET[step + 1]] = {"sleep_seconds": 0.02, "preload": "host"}
                    told = await turn(crowd, names, **changes)
                    assert told["added"] == [new]
                    assert told["removed"] == list(GOING[step : step + 1])
                    assert told["restarted"] == ([] if step < len(GOING) else [QUIET[step + 1]])
                    await crowd.answers(clients)
                await crowd.answers(2 * clients)
                crowd.over = True
            return crowd

        crowd = asyncio.run(story())
        assert crowd.faults == []
        assert crowd.refused > 0
        assert {expert for expert, _ in crowd.streams} >= {*QUIET, *NEW}
        assert [key for key, streams in crowd.streams.items() if len(streams) > 1] == []
        assert process.poll() is None
        written = log.read_text()
        assert '"level": "critical"' not in written
        assert "Traceback" not in written
        for name in GOING:
            assert f"{name}: is gone" in written
