"""What holding an answer's first tokens costs: time to the first word, processor time, and the end of an aborted one.

    python -m benchmarks.held                 prints the table
    python -m benchmarks.held --write         puts it into docs/benchmarks.md

The whole server runs in this process with simulated engines, which tell log-probabilities. An expert is sure of a
question that names it. Streams alternate between servers with and without handover, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.document import document
from coe_server.engines.engine import EngineRequest, EngineResponse
from coe_server.engines.simulated import SimulatedEngine
from coe_server.routing import artifact as artifacts
from coe_server.routing.certainty import WHOLE
from coe_server.routing.handover import HandoverTerms
from coe_server.routing.manifest import CurveEntry
from coe_server.routing.router import Router
from tests.http.server import Running, running_server
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

TOKENS = 8
TTFT_SECONDS, TOKENS_PER_SECOND = 0.05, 100.0
UNSURE = TEXTS["french"]  # for linguist, then big
SURE = f"{UNSURE} linguist"
LONG = " ".join([SURE] * 60)
POLL_SECONDS = 0.0005
MOST_BACK_MS = 100.0


class Watched(SimulatedEngine):
    """Notes when it was left, and when it had told the tokens that are judged."""

    def __init__(self, name: str, tokens_per_second: float) -> None:
        timing: dict[str, Any] = dict.fromkeys(("start_seconds", "wake_seconds", "sleep_seconds"), 0.0)
        super().__init__(
            name, weights_bytes=2**30, ttft_seconds=TTFT_SECONDS, tokens_per_second=tokens_per_second, **timing
        )
        self.told_at = self.left_at = 0.0

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        try:
            async with super().send(request) as answer:
                yield _Counted(answer, self)
        finally:
            self.left_at = time.perf_counter()


class _Counted:
    def __init__(self, answer: EngineResponse, engine: Watched) -> None:
        self.status, self.headers = answer.status, answer.headers
        self._answer, self._engine = answer, engine

    async def chunks(self) -> AsyncIterator[bytes]:
        told = 0
        async for piece in self._answer.chunks():
            told += b'"logprob": ' in piece
            if told <= TOKENS:
                self._engine.told_at = time.perf_counter()
            yield piece


@dataclass(frozen=True, slots=True)
class Stream:
    """Seconds to the headers and first word, and to the end; the expert; and its processor seconds."""

    first: float
    whole: float
    expert: str
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--write", action="store_true", help="keep the table in docs/benchmarks.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="coe-held-") as made, ExitStack() as stack:
        folder = Path(made) / "router"
        _save(folder)
        with_it = _served(stack, folder, HandoverTerms(margin=0.05, tokens=TOKENS), TOKENS_PER_SECOND)
        without = _served(stack, folder, None, TOKENS_PER_SECOND)
        lines = [*_words(with_it, without, options.rounds), *_left(with_it, options.rounds)]
        fast = _served(stack, folder, HandoverTerms(margin=0.05, tokens=TOKENS), 1e6)
        fast_without = _served(stack, folder, None, 1e6)
        lines += _processor(fast, fast_without, max(options.rounds // 5, 3))
    text = "\n".join(
        (
            "## Held tokens",
            "",
            f"`python -m benchmarks.held`: simulated engines, {1000 * TTFT_SECONDS:g} ms to the first token, then"
            f" {TOKENS_PER_SECOND:g} tokens a second; {TOKENS} tokens are judged. Medians of {options.rounds} streams.",
            "",
            "| | |",
            "|---|---|",
            *lines,
        )
    )
    print(text)
    if options.write:
        document("held tokens", text)


def _save(folder: Path) -> None:
    curves = [
        CurveEntry(tokens=tokens, intercept=-3.0, certainty=1.5, score=0.0, alone_intercept=-3.0, alone_certainty=1.5)
        for tokens in (TOKENS, WHOLE)
    ]
    artifacts.save(small_artifact(certainty=dict.fromkeys(SIZES, curves)), held_out(), None, folder)


@dataclass(frozen=True, slots=True)
class Served:
    server: Running
    engines: dict[str, Watched]

    def ask(self, text: str) -> Stream:
        """One stream on a connection of its own."""
        body = json.dumps({"stream": True, "messages": [{"role": "user", "content": text}]})
        with closing(HTTPConnection("127.0.0.1", self.server.port, timeout=60)) as connection:
            busy, began = time.process_time(), time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body)
            answer = connection.getresponse()
            answer.read(1)
            first = time.perf_counter() - began
            answer.read()
            expert = str(answer.getheader("x-coe-expert"))
            return Stream(first, time.perf_counter() - began, expert, time.process_time() - busy)


def _served(stack: ExitStack, folder: Path, terms: HandoverTerms | None, tokens_per_second: float) -> Served:
    engines = {name: Watched(name, tokens_per_second) for name in SIZES}
    router = Router.load(folder, handover=terms)
    settings: dict[str, Any] = {"router": router}
    served = Served(stack.enter_context(running_server(engines, **settings)), engines)
    for name in SIZES:
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "hello"}]})
        served.server.ask("POST", "/v1/chat/completions", body)  # type: ignore[no-untyped-call]  # of the tests
    return served


def _words(with_it: Served, without: Served, rounds: int) -> Iterator[str]:
    """Times to the first word."""
    seen: dict[str, list[Stream]] = {"off": [], "sure": [], "unsure": []}
    for _ in range(rounds):
        seen["off"].append(without.ask(UNSURE))
        seen["sure"].append(with_it.ask(SURE))
        seen["unsure"].append(with_it.ask(UNSURE))
    assert {one.expert for one in seen["off"] + seen["sure"]} == {"linguist"}
    assert {one.expert for one in seen["unsure"]} == {"big"}
    off, sure, unsure = (1000 * median(one.first for one in seen[kind]) for kind in seen)
    yield f"| first word without handover | {off:.0f} ms |"
    yield f"| first word of a sure expert, its tokens held | {sure:.0f} ms |"
    yield f"| first word of the expert that took over | {unsure:.0f} ms |"


def _left(served: Served, rounds: int) -> Iterator[str]:
    """When the engine of an unsure answer is left, and when its lease is back, after the last token that is judged."""
    left, back = [], []
    for _ in range(rounds):
        with _leases_watched(served) as returned:
            served.ask(UNSURE)
        first = served.engines["linguist"]
        left.append(1000 * (first.left_at - first.told_at))
        back.append(1000 * (returned[0] - first.told_at))
    yield f"| engine left, after the last token that is judged | {median(left):.1f} ms, at most {max(left):.1f} |"
    yield (
        f"| lease back, as seen by a poll | {median(back):.1f} ms, at most {max(back):.1f}"
        f" (goal {MOST_BACK_MS:g}: {'met' if max(back) <= MOST_BACK_MS else 'missed'}) |"
    )


@contextmanager
def _leases_watched(served: Served) -> Iterator[list[float]]:
    """The moment when linguist's lease was seen to be back, after it was held."""
    returned: list[float] = []
    done = threading.Event()

    def poll() -> None:
        held = False
        while not returned and not done.is_set():
            seen = served.server.cache.status()  # type: ignore[no-untyped-call]  # of the tests
            leases = next(one.leases for one in seen if one.name == "linguist")
            if held and not leases:
                returned.append(time.perf_counter())
            held = held or leases > 0
            time.sleep(POLL_SECONDS)

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        yield returned
    finally:
        done.set()
        poller.join()


def _processor(with_it: Served, without: Served, rounds: int) -> Iterator[str]:
    """Processor time of a long stream in which log-probabilities are taken out, beside one that has none."""
    took: dict[str, list[float]] = {"with": [], "without": []}
    tokens = len(LONG.split()) + 2
    for _ in range(rounds):
        for kind, served in (("with", with_it), ("without", without)):
            stream = served.ask(LONG)
            assert stream.expert == "linguist", stream
            took[kind].append(stream.processor)
    added = 1e6 * (median(took["with"]) - median(took["without"])) / tokens
    yield f"| processor time for a token with log-probabilities, made and taken out again | {added:.0f} µs more |"


if __name__ == "__main__":
    main()
