"""Replaces `vllm serve` on pretend cards: checks its command line by vLLM's rules, and books the memory of each rank.

    python stand_in.py serve MODEL ...      cards from CUDA_VISIBLE_DEVICES, their ledger from NVIDIA_PRETEND_CARDS

PRETEND_FAULT in its environment makes it misbehave; see FAULTS. It holds no weights: a right answer is the digest of
its model, and some faults make answers wrong. Sources are relative to the wheel's package `vllm`.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import small_web as web
from tests.cuda import rules
from tests.cuda.cards import GIB, MIB, Cards, OutOfMemory

FAULTS = {
    "sleep frees nothing": "answers 200 and keeps all (seen upstream, vllm-project/vllm#47654)",
    "slow release": "what sleep gives back shows as free only after a second",
    "takes as it sleeps": "a neighbour takes more during its sleep than it gives back",
    "cache grows in service": "each answer takes another 256 MiB until the next sleep",
    "garbage after wake": "weights are not what they were",
    "dies on sleep": "ends as it begins to sleep",
    "dies while starting": "ends between context and weights",
    "a rank lacks room": "the last rank needs 1 GiB more than the others",
    "never ready": "its health check fails for ever",
}
FAULT = os.environ.get("PRETEND_FAULT", "")
LOAD_SECONDS = float(os.environ.get("PRETEND_LOAD_SECONDS", "0.2"))  # from the context to the end of the start

CONTEXT = 500 * MIB  # a CUDA context with its libraries: 450 to 550 MiB on an H100
NCCL = 700 * MIB  # for each of several ranks: by upstream's figure, a sleeping rank keeps 2.7 GiB in all
GRAPH = 24 * MIB  # for each captured batch size: with 51 of them a sleeping engine keeps 1.3 to 1.9 GiB
ACTIVATIONS_LARGE, ACTIVATIONS_SMALL = 1300 * MIB, 400 * MIB  # of the longest step, on cards of 80 GB and of 24 GB
FIRST_RANK_MORE = 1.02  # rank 0 also holds embeddings and sampler
PROCESS_IMAGE_ROUNDING = 1.36  # pinned blocks round up to powers of two
LARGE_CARD = 70 * GIB
LONG_PROMPT_CHARACTERS = 2000  # a prompt of this length fills the longest step


@dataclass(frozen=True, slots=True)
class Model:
    """From the model's folder: bytes of weights over all ranks, bytes of a token's keys and values on one rank."""

    digest: str
    weights_bytes: int
    longest: int
    token_bytes: int

    @classmethod
    def read(cls, folder: Path, tensor_parallel: int) -> Model:
        config = json.loads((folder / "config.json").read_text())
        heads = config.get("num_key_value_heads", config["num_attention_heads"])
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        token_bytes = 2 * config["num_hidden_layers"] * max(1, heads // tensor_parallel) * size * 2
        index = folder / "model.safetensors.index.json"
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        weights = sum((folder / name).stat().st_size for name in names)
        digest = hashlib.sha256(str(folder).encode()).hexdigest()
        return cls(digest, weights, config["max_position_embeddings"], token_bytes)


class Rank:
    """One process on one card. Its device memory is in the cards' ledger; `pinned` is host memory."""

    def __init__(self, cards: Cards, card: int, number: int, of: int, options: dict[str, Any]) -> None:
        self.cards, self.card, self.number, self.of = cards, card, number, of
        self.options = options
        self.pinned = 0
        self.graphs = 0
        self.asleep = False
        self.right = True
        self.extension: Any = None

    def start(self, model: Model) -> int:
        """As v1/worker/gpu_worker.py: context and NCCL, then the check of free memory, weights, cache, graphs.

        Returns the length of the longest request, in tokens.
        """
        self.cards.take(self.card, "context", CONTEXT)
        if self.of > 1:
            self.cards.take(self.card, "nccl", NCCL)
        reading = self.cards.reading(self.card)
        rules.check_free(reading.total, reading.free, self.options["gpu_memory_utilization"])
        if FAULT == "dies while starting":
            os._exit(1)
        time.sleep(LOAD_SECONDS)
        share = model.weights_bytes // self.of
        self.weights = round(share * FIRST_RANK_MORE) if self.of > 1 and self.number == 0 else share
        if FAULT == "a rank lacks room" and self.number == self.of - 1:
            self.weights += GIB
        self.cards.take(self.card, "weights", self.weights)
        available = self.kv_cache_bytes()
        longest = self.options["max_model_len"]
        if longest == -1:  # v1/core/kv_cache_utils.py, _auto_fit_max_model_len
            longest = min(model.longest, available // model.token_bytes)
        longest = longest or model.longest
        rules.check_kv_cache(available, model.token_bytes, longest)
        self.cards.take(self.card, "kv_cache", available)
        if not self.options["enforce_eager"]:
            self.graphs = GRAPH * rules.graph_sizes(self.options["max_num_seqs"])
            self.cards.take(self.card, "graphs", self.graphs)
        if self.options["worker_extension_cls"]:
            self.extension = extension(self.options["worker_extension_cls"], self)
        return int(longest)

    def kv_cache_bytes(self) -> int:
        """As given, else the rest of the share of the card (v1/worker/gpu_worker.py, determine_available_memory)."""
        given = self.options["kv_cache_memory_bytes"]
        if given:
            return int(given)
        total = self.cards.reading(self.card).total
        return int(total * self.options["gpu_memory_utilization"]) - CONTEXT - self.weights - self.activations()

    def activations(self) -> int:
        return ACTIVATIONS_LARGE if self.cards.reading(self.card).total >= LARGE_CARD else ACTIVATIONS_SMALL

    def step(self, prompt_characters: int) -> str | None:
        """One answer: None, or its error. The first long prompt allocates activations, which torch's cache keeps."""
        try:
            if prompt_characters >= LONG_PROMPT_CHARACTERS and not self.held("activations"):
                self.cards.take(self.card, "activations", self.activations())
            if FAULT == "cache grows in service":
                self.cards.take(self.card, "activations", 256 * MIB)
        except OutOfMemory as error:
            return str(error)
        return None

    def sleep(self) -> None:
        """device_allocator/cumem.py: weights move to pinned host memory, KV cache and torch's cache are freed."""
        if not self.options["enable_sleep_mode"]:
            raise RuntimeError("Sleep mode is not enabled")
        if FAULT == "dies on sleep":
            os._exit(1)
        before = self.cards.reading(self.card).free
        if FAULT != "sleep frees nothing":
            later = 1.0 if FAULT == "slow release" else 0.0
            for what in ("weights", "kv_cache", "activations"):
                self.cards.give_back(self.card, what, later)
            if self.options["sleep_mode_offload_cudagraph"]:
                self.cards.give_back(self.card, "graphs", later)
            if self.options["enable_nccl_comm_suspend"]:
                self.cards.give_back(self.card, "nccl", later)
        if FAULT == "takes as it sleeps":
            self.cards.neighbour(self.card, self.cards.reading(self.card).total - before - 100 * MIB)
        offloaded = self.weights + (self.graphs if self.options["sleep_mode_offload_cudagraph"] else 0)
        rounding = 1.0 if "pinned_max_round_threshold_mb:1" in os.environ.get("PYTORCH_ALLOC_CONF", "") else 0.0
        self.pinned = max(self.pinned, round(offloaded * (rounding or PROCESS_IMAGE_ROUNDING)))
        self.asleep = True
        # v1/worker/gpu_worker.py, sleep: this assertion fails if another program allocates meanwhile
        assert self.cards.reading(self.card).free >= before, "Memory usage increased after sleeping."

    def wake_up(self) -> None:
        if not self.asleep or FAULT == "sleep frees nothing":
            self.asleep = False
            return
        self.cards.take(self.card, "weights", self.weights)
        self.cards.take(self.card, "kv_cache", int(self.options["kv_cache_memory_bytes"] or 0))
        if self.options["sleep_mode_offload_cudagraph"]:
            self.cards.take(self.card, "graphs", self.graphs)
        if self.options["enable_nccl_comm_suspend"] and self.of > 1:
            self.cards.take(self.card, "nccl", NCCL)
        self.asleep = False
        self.right = FAULT != "garbage after wake"

    def pool(self) -> dict[int, Any]:
        """`CuMemAllocator.pointer_to_data`, by address; `handle` is (device, size, address, chunks)."""
        sizes = {"weights": self.weights, "kv_cache": self.options["kv_cache_memory_bytes"] or 0}
        if self.options["sleep_mode_offload_cudagraph"]:
            sizes["cudagraph"] = self.graphs
        return {
            number: SimpleNamespace(handle=(self.number, size, number, []), tag=tag, is_asleep=self.asleep)
            for number, (tag, size) in enumerate(sizes.items())
        }

    def held(self, what: str) -> int:
        return self.cards.held(os.getpid(), self.card).get(what, 0)

    def answer(self, asked: dict[str, Any]) -> Any:
        own: dict[str, Callable[[], Any]] = {
            "start": lambda: self.start(Model(**asked["model"])),
            "step": lambda: self.step(asked["characters"]),
            "sleep": self.sleep,
            "wake_up": self.wake_up,
            "is right": lambda: self.right,
            "check_health": lambda: None,
        }
        method = asked["do"]
        return own[method]() if method in own else getattr(self.extension, method)()


def extension(name: str, rank: Rank) -> Any:
    """Our worker's extension, mixed in as by v1/worker/worker_base.py, over a torch that reads the rank's ledger."""
    sys.path.insert(0, str(Path(__file__).with_name("in_vllm")))
    import torch  # noqa: PLC0415  the stand-in beside this file, and only in here

    torch.of_rank(rank)
    module, _, attribute = name.rpartition(".")
    base = getattr(importlib.import_module(module), attribute)

    class Worker(base):  # type: ignore[misc]  known only when it runs
        def __init__(self) -> None:
            self.rank, self.local_rank, self.device = rank.number, rank.number, f"cuda:{rank.number}"

    return Worker()


def work(wire: Connection, card: int, number: int, of: int, options: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rank = Rank(Cards(), card, number, of, options)
    while True:
        try:
            asked = wire.recv()
        except EOFError:
            return
        try:
            wire.send((rank.answer(asked), None))
        except Exception as error:  # noqa: BLE001  as vLLM: the caller gets the error, the process continues
            wire.send((None, f"{type(error).__name__}: {error}"))


class Engine:
    """The API process, which calls all ranks of all data-parallel copies."""

    def __init__(self, options: dict[str, Any], model: Model) -> None:
        self.options, self.model = options, model
        self.name = options["served_model_name"][0]
        self.of = options["tensor_parallel_size"] * options["pipeline_parallel_size"]
        self.longest = 0
        self.one_question = threading.Lock()
        cards = visible_cards()
        width = self.of * options["data_parallel_size"]
        if width > len(cards):
            sys.exit(f"AssertionError: DP adjusted local rank {len(cards)} is out of bounds for {len(cards)} devices.")
        context = multiprocessing.get_context("fork")
        self.ranks: list[tuple[Any, Connection]] = []
        for number in range(width):
            ours, theirs = context.Pipe()
            arguments = (theirs, cards[number], number % self.of, self.of, options)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.ranks.append((process, ours))

    def ask(self, copy: int | None = None, **asked: Any) -> list[Any]:
        """The answer of each rank, of one copy or of all. Raises the first error. One call at a time."""
        with self.one_question:
            return self._ask(copy, **asked)

    def _ask(self, copy: int | None, **asked: Any) -> list[Any]:
        chosen = self.ranks if copy is None else self.ranks[copy * self.of : (copy + 1) * self.of]
        for _, wire in chosen:
            wire.send(asked)
        answers = []
        for process, wire in chosen:
            try:
                answers.append(wire.recv())
            except (EOFError, OSError):
                sys.exit(f"RuntimeError: Engine core proc died unexpectedly: rank process {process.pid}")
        for _, error in answers:
            if error is not None:
                raise RuntimeError(error)
        return [value for value, _ in answers]

    def start(self) -> None:
        self.longest = min(self.ask(do="start", model=_as_dict(self.model)))

    async def health(self, _: web.Request) -> web.Response:
        alive = all(process.is_alive() for process, _ in self.ranks) and FAULT != "never ready"
        return web.Response(status=200 if alive else 503)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name, "object": "model", "max_model_len": self.longest}]})

    async def sleep(self, request: web.Request) -> web.Response:
        return await self._moved(do="sleep")

    async def wake_up(self, request: web.Request) -> web.Response:
        return await self._moved(do="wake_up")

    async def is_sleeping(self, _: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": False})

    async def collective_rpc(self, request: web.Request) -> web.Response:
        """Calls all copies, returns the first one's results: v1/engine/core_client.py, DPLBAsyncMPClient's
        call_utility_async.
        """
        method = (await request.json())["method"]
        try:
            return web.json_response({"results": (await asyncio.to_thread(self.ask, do=method))[: self.of]})
        except RuntimeError as error:
            return web.json_response({"error": {"message": str(error)}}, status=500)

    async def completions(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return await self._answer(request, str(asked["prompt"]), lambda text: {"choices": [{"text": text, "index": 0}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        prompt = "".join(str(message["content"]) for message in asked["messages"])
        if not asked.get("stream"):
            message = {"message": {"role": "assistant"}, "index": 0, "finish_reason": "stop"}
            return await self._answer(
                request,
                prompt,
                lambda text: {"choices": [{**message, "message": {"role": "assistant", "content": text}}]},
            )
        answer = await asyncio.to_thread(self._said, prompt, copy_for(request))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in (answer[:8], answer[8:]):
            event = {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        await response.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())
        return response

    async def _answer(self, request: web.Request, prompt: str, shape: Any) -> web.Response:
        try:
            return web.json_response(shape(await asyncio.to_thread(self._said, prompt, copy_for(request))))
        except RuntimeError as error:
            return web.json_response({"error": {"message": str(error)}}, status=500)

    def _said(self, prompt: str, copy: int) -> str:
        lacking = [error for error in self.ask(copy, do="step", characters=len(prompt)) if error]
        if lacking:
            raise RuntimeError(lacking[0])
        return self.model.digest if all(self.ask(copy, do="is right")) else "!!!!!!!!!!!!!!!!"

    async def _moved(self, **asked: Any) -> web.Response:
        try:
            await asyncio.to_thread(self.ask, **asked)
        except RuntimeError as error:
            return web.json_response({"error": {"message": str(error)}}, status=500)
        return web.json_response({})


def folder_of(model: str) -> Path:
    """A folder, or the snapshot of an id in huggingface_hub's cache. Exits if it would have to download."""
    if Path(model).is_dir():
        return Path(model)
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        sys.exit(f"OSError: We couldn't connect to 'https://huggingface.co' to load {model}")
    home = os.environ.get("HF_HOME", str(Path.home() / ".cache/huggingface"))
    repository = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")) / f"models--{model.replace('/', '--')}"
    return repository / "snapshots" / (repository / "refs/main").read_text()


def visible_cards() -> list[int]:
    """Cards by index in the ledger: CUDA_VISIBLE_DEVICES lists indices, UUIDs, or beginnings of UUIDs."""
    cards = Cards()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(range(len(cards)))
    found = []
    for word in filter(None, (word.strip() for word in listed.split(","))):
        matching = [
            card
            for card in range(len(cards))
            if (str(card) == word if word.isdigit() else cards.uuid(card).startswith(word))
        ]
        if len(matching) != 1:
            break  # CUDA ignores the first unknown card and all after it
        found.append(matching[0])
    return found


def copy_for(request: web.Request) -> int:
    """entrypoints/generate/base/serving.py, _get_data_parallel_rank; without the header vLLM balances load, this
    takes the first copy.
    """
    return int(request.headers.get("X-data-parallel-rank", "0"))


def _chat_answer(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "index": 0, "finish_reason": "stop"}]}


def _as_dict(model: Model) -> dict[str, Any]:
    return {name: getattr(model, name) for name in Model.__slots__}


async def serve(engine: Engine, socket: str) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    app = web.Application()
    app.add_routes(
        [
            web.get("/health", engine.health),
            web.get("/v1/models", engine.models),
            web.post("/sleep", engine.sleep),
            web.post("/wake_up", engine.wake_up),
            web.get("/is_sleeping", engine.is_sleeping),
            web.post("/collective_rpc", engine.collective_rpc),
            web.post("/v1/completions", engine.completions),
            web.post("/v1/chat/completions", engine.chat),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    await stopping.wait()
    await runner.cleanup()


def main(words: list[str]) -> None:
    try:
        options = rules.parse(words[1:])
        model = Model.read(folder_of(options["model_tag"]), options["tensor_parallel_size"])
        engine = Engine(options, model)
        engine.start()
    except (rules.Refused, RuntimeError) as error:
        sys.exit(str(error))
    asyncio.run(serve(engine, options["uds"]))


if __name__ == "__main__":
    main(sys.argv[1:])
