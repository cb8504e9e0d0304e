"""Follows a guide in one folder: writes its files and runs its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
Adapt = Callable[[str, int], str]  # the guide's serve.yaml and a free port -> one that runs here


@dataclass(frozen=True)
class Block:
    """One fenced block of a guide."""

    language: str
    text: str


def blocks(guide: Path) -> list[Block]:
    return blocks_of(guide.read_text())


def blocks_of(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


class Reader:
    """Runs blocks in `sh` line by line, ignores those in `text`, and writes all others as files."""

    def __init__(self, folder: Path, adapt: Adapt) -> None:
        self.folder = folder
        self.adapt = adapt
        self.port = free_port()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.server: subprocess.Popen[bytes] | None = None
        self.said: dict[str, str] = {}

    def follow(self, block: Block) -> None:
        text = block.text.replace(":8080", f":{self.port}")
        if block.language == "sh":
            for line in text.splitlines():
                self.run(line)
        elif block.language != "text":
            title, _, content = text.partition("\n")
            name = title.removeprefix("# ").removeprefix("add to ")
            with (self.folder / name).open("a" if "add to" in title else "w") as file:
                file.write(self.adapt(content, self.port) if name == "serve.yaml" else content)

    def run(self, line: str) -> None:
        if line.startswith("coe serve "):
            self.serve(line)
            return
        line = line.replace("PYTHONPATH=.", f"PYTHONPATH=.:{ROOT}")
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        self.said[line.replace(f":{self.port}", ":8080")] = done.stdout

    def serve(self, line: str) -> None:
        self.stop()
        with (self.folder / "server.log").open("wb") as log:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.is_ready():
            assert self.server.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not get ready"
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=PATIENCE_SECONDS) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait(PATIENCE_SECONDS)


@contextmanager
def reading(folder: Path, adapt: Adapt) -> Iterator[Reader]:
    reader = Reader(folder, adapt)
    try:
        yield reader
    finally:
        reader.stop()
