"""Serves the part of vLLM's API that our driver needs, holds real memory, and misbehaves as STAND_IN_FAULT says.

Its answers are digests of its "weights", so an answer is right only if the weights are.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import json
import mmap
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import pairwise, takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import small_web as web

FAULT = os.environ.get("STAND_IN_FAULT", "")
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def main(words: list[str]) -> None:
    if FAULT == "refuses to start":
        sys.exit("ValueError: this model is not to my taste")
    options = dict(pairwise(words))  # flags without a value are ignored here
    core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
    if FAULT == "a child escapes":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"], start_new_session=True)
    engine = StandIn(options["--served-model-name"], Path(words[1]), int(options["--kv-cache-memory-bytes"]))
    engine.adapters = {one["name"]: Path(one["path"]) for one in adapters_of(words)}
    app = web.Application()
    app.add_routes(
        [
            web.get("/health", engine.health),
            web.post("/sleep", engine.sleep),
            web.post("/wake_up", engine.wake_up),
            web.post("/collective_rpc", engine.collective_rpc),
            web.post("/v1/load_lora_adapter", engine.load_adapter),
            web.post("/v1/unload_lora_adapter", engine.unload_adapter),
            web.post("/v1/completions", engine.completions),
            web.post("/v1/chat/completions", engine.chat),
        ]
    )
    asyncio.run(serve(app, options["--uds"], core))


def adapters_of(words: list[str]) -> list[dict[str, str]]:
    if "--lora-modules" not in words:
        return []
    after = words[words.index("--lora-modules") + 1 :]
    return [json.loads(word) for word in takewhile(lambda word: not word.startswith("--"), after)]


async def serve(app: web.Application, socket: str, core: subprocess.Popen[bytes]) -> None:
    stopping = asyncio.Event()
    handler = (lambda: None) if "ignores SIGTERM" in FAULT else stopping.set
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, handler)
    runner = web.AppRunner(app, keepalive_timeout=float(os.environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]))
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    print("stand-in is up", flush=True)  # noqa: T201  goes to the engine's log
    chatter = asyncio.create_task(talk()) if FAULT == "talks without end" else None
    await stopping.wait()
    if chatter is not None:
        chatter.cancel()
    await runner.cleanup()
    core.kill()


async def talk() -> None:
    for _ in range(1 << 20):  # a limit of 5 GB, so that it never fills a disk
        print("blah " * 1000, flush=True)  # noqa: T201  goes to the engine's log
        await asyncio.sleep(0)


def report() -> None:
    """Log output before the end, longer than one read."""
    print("blah\n" * 100_000 + "RuntimeError: the last word", flush=True)  # noqa: T201  goes to the engine's log


class StandIn:
    def __init__(self, name: str, model: Path, kv_cache_bytes: int) -> None:
        self.name = name
        weights = (model / "model.safetensors").read_bytes()
        self.weights_bytes = len(weights)
        self.weights = mmap.mmap(-1, len(weights), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.weights[:] = weights
        self.kv_cache = mmap.mmap(-1, kv_cache_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.fill_kv_cache()
        self.adapters: dict[str, Path] = {}
        self.lost: set[str] = set()  # they answer as the base does
        self.mark = model / "lost"
        self.image = -1
        self.loaded_from_image = self.load_from_image()

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if FAULT == "never healthy" else 200)

    async def sleep(self, request: web.Request) -> web.Response:
        if "hangs on sleep" in FAULT:
            print("RuntimeError: the pillow is gone", flush=True)  # noqa: T201  goes to the engine's log
            await asyncio.Event().wait()
        if FAULT == "dies on sleep":
            report()
            os._exit(1)
        if (request.query.get("level"), request.query.get("mode")) != ("1", "wait"):
            return web.json_response({"error": "without these, vLLM would abort what is running"}, status=400)
        self.write_image()
        if FAULT != "keeps its memory":
            self.weights.madvise(mmap.MADV_DONTNEED)
            self.kv_cache.madvise(mmap.MADV_DONTNEED)
        return web.json_response({"status": "sleeping"})

    async def wake_up(self, request: web.Request) -> web.Response:
        if FAULT != "answers garbage after wake":
            os.preadv(self.image, [self.weights], 0)
        self.fill_kv_cache()
        if "loses its adapters" in FAULT:
            self.lost = set(self.adapters)
            self.mark.touch()
        if FAULT == "forgets its adapters":
            self.adapters.clear()
        return web.json_response({"status": "awake"})

    async def load_adapter(self, request: web.Request) -> web.Response:
        asked = await request.json()
        print(f"loaded {asked['lora_name']}", flush=True)  # noqa: T201  goes to the engine's log
        if not (Path(asked["lora_path"]) / "adapter_model.safetensors").exists():
            return web.json_response({"error": "there is no such adapter"}, status=404)
        self.adapters[asked["lora_name"]] = Path(asked["lora_path"])
        if "for good" not in FAULT:
            self.lost.discard(asked["lora_name"])
        return web.Response(text="Success: LoRA adapter added successfully.")

    async def unload_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return web.json_response({"error": "there is no such adapter"}, status=404)
        return web.Response(text="Success: LoRA adapter removed successfully.")

    async def collective_rpc(self, request: web.Request) -> web.Response:
        results: dict[str, Callable[[], object]] = {
            "memory_report": self.memory_report,
            "write_image": self.write_image,
            "check_health": lambda: None,
        }
        method = (await request.json())["method"]
        if f"hangs on {method}" in FAULT:
            await asyncio.Event().wait()
        return web.json_response({"results": [results[method]()]})

    def memory_report(self) -> dict[str, object]:
        return {
            "weights_bytes": self.weights_bytes,
            "kv_cache_bytes": len(self.kv_cache),
            "loaded_from_image": self.loaded_from_image,
        }

    async def completions(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["model"] not in {self.name, *self.adapters}:
            return web.json_response({"error": "there is no such model"}, status=404)
        if FAULT == "says nothing":
            return web.json_response({"choices": []})
        if FAULT == "speaks no JSON":
            return web.Response(text="<html>")
        return web.json_response({"choices": [{"text": self.digest(asked["model"])}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Engine": self.name})
        await response.prepare(request)
        question = asked["messages"][-1]["content"]
        told = (unsure_or_sure(question),) if asked.get("logprobs") else ()
        for word in (*told, question, self.digest(asked["model"]), "[DONE]"):
            await response.write(f"data: {word}\n\n".encode())
            if FAULT == "dies mid-stream with a report":
                report()
            if "dies mid-stream" in FAULT:
                os.kill(os.getpid(), signal.SIGKILL)
        return response

    def digest(self, name: str) -> str:
        """Of the weights and, under an adapter's name, its own."""
        known = hashlib.sha256(self.weights)
        is_lost = name in self.lost or (FAULT.endswith("over restarts") and self.mark.exists())
        if name in self.adapters and not is_lost:
            known.update((self.adapters[name] / "adapter_model.safetensors").read_bytes())
        return known.hexdigest()

    def load_from_image(self) -> bool:
        """Load the weights from an earlier start's image. False without one; some faults load them wrongly or never."""
        path = os.environ.get("COE_WEIGHT_IMAGE")
        if not path or FAULT == "does not trust its image":
            return False
        image = os.open(path, os.O_RDWR)
        if fcntl.fcntl(image, fcntl.F_GET_SEALS) & SEALS != SEALS:
            os.close(image)
            return False
        self.image = image
        if FAULT != "answers garbage after restart":
            os.preadv(image, [self.weights], 0)
        else:
            self.weights[:1] = b"?"
        return True

    def write_image(self) -> None:
        if self.image >= 0:
            return
        path = os.environ.get("COE_WEIGHT_IMAGE")
        self.image = os.open(path, os.O_RDWR) if path else os.memfd_create("own", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.image, self.weights_bytes)
        os.pwrite(self.image, self.weights, 0)
        if FAULT != "leaves its image open":
            fcntl.fcntl(self.image, fcntl.F_ADD_SEALS, SEALS)

    def fill_kv_cache(self) -> None:
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(self.kv_cache)), 1, len(self.kv_cache))


def unsure_or_sure(question: str) -> str:
    """A chunk without text, with the log-probabilities of some tokens: one question in two makes them low."""
    logprob = -3.0 if zlib.crc32(question.encode()) % 2 else -0.01
    tokens = [{"token": "", "logprob": logprob, "bytes": [], "top_logprobs": []}] * 8
    choice = {"index": 0, "delta": {"content": ""}, "logprobs": {"content": tokens}, "finish_reason": None}
    return json.dumps({"choices": [choice]})


if __name__ == "__main__":
    main(sys.argv[1:])
