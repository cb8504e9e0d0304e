"""A real vLLM on the CPU, in a loop of its own, for tests that tell one story of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe_server.engines.engine import EngineRequest
from coe_server.engines.memory import private_bytes, process_tree
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.engine import VllmEngine

KV_CACHE_BYTES = 128 << 20


@dataclass
class Real:
    """One engine and the loop it lives in."""

    engine: VllmEngine
    runner: asyncio.Runner

    @property
    def keeper(self) -> int:
        assert self.engine._run is not None
        return self.engine._run.process.pid

    @property
    def core(self) -> int:
        """The process that holds the weights: the largest, below the API server."""
        return max(process_tree(self.keeper)[2:], key=private_bytes)

    def report(self) -> dict[str, Any]:
        return self.runner.run(self.engine.running().ask_worker("memory_report"))

    def ask(self, text: str, **options: Any) -> list[bytes]:
        return self.runner.run(self.chat(text, **options))

    def completed(self, text: str, **options: Any) -> list[bytes]:
        return self.runner.run(self._send("/v1/completions", {"prompt": text}, options))

    def tokens(self, text: str, **options: Any) -> list[int]:
        return self.runner.run(self.answer_tokens(text, **options))

    async def answer_tokens(self, text: str, **options: Any) -> list[int]:
        choice = await self.choice(text, return_token_ids=True, **options)
        tokens: list[int] = choice["token_ids"]
        return tokens

    async def choice(self, text: str, **options: Any) -> dict[str, Any]:
        choice: dict[str, Any] = json.loads(b"".join(await self.chat(text, **options)))["choices"][0]
        return choice

    async def chat(self, text: str, **options: Any) -> list[bytes]:
        return await self._send("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}, options)

    async def _send(self, path: str, said: dict[str, Any], options: dict[str, Any]) -> list[bytes]:
        body = {"model": self.engine.launch.name, **said, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        body |= options
        headers = (("content-type", "application/json"),)
        request = EngineRequest("POST", path, headers, json.dumps(body).encode(), model=body["model"])
        async with self.engine.send(request) as response:
            chunks = [chunk async for chunk in response.chunks()]
        assert response.status == 200, chunks
        return chunks


@contextmanager
def started(
    vllm_environment: Path, folder: Path, model: Path, seat: tuple[int, ...] = (0,), **settings: Any
) -> Iterator[Real]:
    """An engine of this model; `settings`: those of a launch that differ."""
    usual: dict[str, Any] = {
        "name": "french",
        "kv_cache_bytes": KV_CACHE_BYTES,
        "args": {"max_model_len": 512, "max_num_seqs": 8},
        # as in the CPU image: torch would compile a kernel for log-probabilities, half a minute of processor time
        "environment": {"HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"},
        # beside eight busy processes a step or a move takes ten times as long
        **{"start_timeout_seconds": 900, "pulse_timeout_seconds": 600, "move_timeout_seconds": 300},
        "stop_timeout_seconds": 120,
    }
    launch = VllmLaunch(
        model=str(model),
        log_directory=folder / "logs",
        platform="cpu",
        command=(str(vllm_environment / "bin/vllm"),),
        inherited=os.environ,
        **usual | settings,
    )
    with asyncio.Runner() as runner:
        engine = VllmEngine(launch)
        runner.run(engine.start(seat=seat))
        try:
            yield Real(engine, runner)
        finally:
            runner.run(engine.stop())
