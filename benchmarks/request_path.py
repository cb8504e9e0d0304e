"""The path of one request through our own code: calls, files, and calls from one file into another.

    python -m benchmarks.request_path                                      # prints the table
    python -m benchmarks.request_path --hops                               # and every hop, in order
    python -m benchmarks.request_path --artifact artifacts/demo-router     # with a router that decides
    python -m benchmarks.request_path --write                              # puts the table into docs/benchmarks.md

The whole server runs in this process with simulated engines. `sys.setprofile` sees every call of a function of
`coe_server` in every thread, from the request's first byte until the server is idle again. A coroutine that continues
after a wait is not counted as another call. Prefetching is off: its moves before and after an answer are no part of the
request, and fall into some rounds. The median of several rounds is shown.
"""

from __future__ import annotations

import argparse
import dis
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType

import coe_server
from benchmarks.document import document
from coe_server.app import build_server
from coe_server.config.schema import ServerConfig

ROOT = str(Path(coe_server.__file__).parent) + "/"
WARM, ASLEEP = "python", "sql"
WORDS = "one two three four five six seven eight"
ROUNDS = 5
QUIET_SECONDS = 0.2
LIMIT_SECONDS = 60.0
FAST = {
    "engine": "simulated",
    **{"weights_bytes": 2**30, "start_seconds": 0.0, "wake_seconds": 0.0, "sleep_seconds": 0.0, "ttft_seconds": 0.0},
    "tokens_per_second": 1e6,
}


@dataclass(frozen=True, slots=True)
class Taken:
    """The calls of one request, in order, as (file, function), and the number that crossed a file."""

    calls: tuple[tuple[str, str], ...]
    crossings: int

    @property
    def functions(self) -> int:
        return len(set(self.calls))

    @property
    def files(self) -> int:
        return len({file for file, _ in self.calls})


class Recorder:
    """Collects calls of our functions, in the order in which they begin."""

    def __init__(self) -> None:
        self._last_seen = 0.0
        self._calls: list[tuple[str, str]] = []
        self._crossings = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT):
            return
        if _is_of_clock(frame):
            return
        self._last_seen = time.monotonic()
        if frame.f_lasti > _first_instruction(code):  # a coroutine or generator continues
            return
        self._calls.append((code.co_filename[len(ROOT) :], code.co_qualname))
        self._crossings += _calling_file(frame) != code.co_filename

    def wait_for_quiet(self) -> None:
        """Wait until no call of ours has been recorded for `QUIET_SECONDS`."""
        self._last_seen = time.monotonic()
        _wait_until(lambda: time.monotonic() - self._last_seen > QUIET_SECONDS)

    def taken(self) -> Taken:
        """Return the recording and begin a new one."""
        found = Taken(tuple(self._calls), self._crossings)
        self._calls, self._crossings = [], 0
        return found


def _is_of_clock(frame: FrameType | None) -> bool:
    """True for the handler that uvicorn calls ten times a second, for no request."""
    while frame is not None and frame.f_code.co_name != "on_tick":
        frame = frame.f_back
    return frame is not None


@cache
def _first_instruction(code: CodeType) -> int:
    return next(one.offset for one in dis.get_instructions(code) if one.opname == "RESUME")


def _calling_file(frame: FrameType) -> str | None:
    """The file of our function that called this one; None if the event loop or a library called it."""
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(ROOT):
        caller = caller.f_back
    return caller and caller.f_code.co_filename


def main() -> None:
    options = _options()
    recorder = Recorder()
    threading.setprofile(recorder)
    with tempfile.TemporaryDirectory() as folder, _running(_config(Path(folder), options.artifact)) as client:
        measured = {
            "warm, streamed, eight chunks": _median(lambda: _warm(recorder, client)),
            "asleep expert, another one leaves for it": _median(lambda: _asleep(recorder, client)),
        }
    text = _table(measured, options.artifact)
    print(text)
    if options.hops:
        for name, path in measured.items():
            print(f"\n{name}:\n{_hops(path)}")
    if options.write:
        document("request-path", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--artifact", type=Path, help="a router artifact; without it the expert is named")
    parser.add_argument("--hops", action="store_true", help="print every call in order, repeats collapsed")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args()


def _config(folder: Path, artifact: Path | None) -> ServerConfig:
    names = (WARM, ASLEEP) if artifact is None else _experts_of(artifact)
    return ServerConfig.model_validate(
        {
            "http": {"port": 0},
            "state_directory": str(folder),
            "memory": {"device": 2**30, "host": 2**40},
            "scheduling": {"prefetch": False},
            "experts": [{"name": name, **FAST} for name in names],
            **({} if artifact is None else {"router": {"artifact": str(artifact)}}),
        }
    )


def _experts_of(artifact: Path) -> list[str]:
    return [expert["name"] for expert in json.loads((artifact / "manifest.json").read_text())["experts"]]


@contextmanager
def _running(config: ServerConfig) -> Iterator[HTTPConnection]:
    server = build_server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait_until(lambda: bool(server.started))
        client = HTTPConnection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1], timeout=LIMIT_SECONDS)
        with closing(client):
            yield client
    finally:
        server.should_exit = True
        thread.join(LIMIT_SECONDS)


def _median(measure: Callable[[], Taken]) -> Taken:
    """The median round by calls."""
    return sorted((measure() for _ in range(ROUNDS)), key=lambda path: len(path.calls))[ROUNDS // 2]


def _warm(recorder: Recorder, client: HTTPConnection) -> Taken:
    for _ in range(2):
        _chat(client, WARM)
    return _recorded(recorder, client, WARM)


def _asleep(recorder: Recorder, client: HTTPConnection) -> Taken:
    for expert in (ASLEEP, WARM):
        _chat(client, expert)
    return _recorded(recorder, client, ASLEEP)


def _recorded(recorder: Recorder, client: HTTPConnection, expert: str) -> Taken:
    recorder.wait_for_quiet()
    recorder.taken()
    _chat(client, expert)
    recorder.wait_for_quiet()
    return recorder.taken()


def _wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < until, "it does not come to an end"
        time.sleep(0.01)


def _chat(client: HTTPConnection, expert: str) -> None:
    body = {"model": expert, "stream": True, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 8}
    client.request("POST", "/v1/chat/completions", json.dumps(body))
    response = client.getresponse()
    answer = response.read()
    assert response.status == 200, answer
    assert answer.endswith(b"data: [DONE]\n\n"), answer


def _table(measured: dict[str, Taken], artifact: Path | None) -> str:
    who = "its expert is named" if artifact is None else f"{artifact.name} decides"
    rows = [
        "## The path of a request",
        "",
        f"`python -m benchmarks.request_path`: calls of our own functions for one request over HTTP, {who}. "
        "Prefetching is off.",
        "",
        "| request | calls | functions | files | calls into another file |",
        "|---|---|---|---|---|",
    ]
    for name, path in measured.items():
        rows.append(f"| {name} | {len(path.calls):,} | {path.functions} | {path.files} | {path.crossings} |")
    return "\n".join(rows)


def _hops(path: Taken) -> str:
    lines = []
    for (file, function), repeats in groupby(path.calls):
        times = sum(1 for _ in repeats)
        lines.append(f"  {file:45} {function}{f'  x {times}' if times > 1 else ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
