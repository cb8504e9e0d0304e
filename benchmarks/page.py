"""How soon the page shows a move: from the server's own event until the expert's card is on its new shelf.

    python -m benchmarks.page [--demo] [--pictures FOLDER] [--write]

Simulated experts, requested by name; with --demo the demo's five on real engines, requested in the page's playground
(`make demo` must have been run once). Needs a Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from benchmarks.document import document
from coe_server.cache.policy import Limits
from coe_server.cache.tiers import Bytes
from coe_server.engines.simulated import SimulatedEngine
from tests.http.server import running_server

GIB = 2**30
EXPERTS = ("coder", "linguist", "mathematician")
ROUNDS = 30
WATCH = """() => {
  window.began = Date.now();
  window.shown = {};
  const note = () => {
    for (const card of document.querySelectorAll(".card")) {
      const where = `${card.dataset.expert} ${card.closest(".shelf").dataset.tier}`;
      if (window.last?.[card.dataset.expert] !== where) {
        (window.last ??= {})[card.dataset.expert] = where;
        (window.shown[where] ??= []).push(Date.now());
      }
    }
  };
  note();
  new MutationObserver(note).observe(document.getElementById("shelves"), { childList: true, subtree: true });
  window.moves = [];
  new EventSource("/admin/events").addEventListener("move", (event) => moves.push(JSON.parse(event.data)));
}"""


ROOT = Path(__file__).resolve().parent.parent
DEMO_QUESTIONS = 9  # two starts, a few wakes and sleeps: about three minutes
DEMO_PATIENCE_MS = 120_000


@dataclass(frozen=True)
class Subject:
    """A server, and a way to request answers that makes its experts move. `name` is its name in the table."""

    name: str
    command: str
    port: int
    rounds: int

    def ask(self, page: Page, turn: int) -> None:
        """Ask once, and return when the answer is whole. Its expert may have left the device again by then."""
        raise NotImplementedError


class Simulated(Subject):
    """Three experts with room for one, asked by name past the page."""

    def ask(self, page: Page, turn: int) -> None:
        expert = EXPERTS[turn % len(EXPERTS)]
        asked = {"model": expert, "messages": [{"role": "user", "content": "well?"}]}
        page.evaluate(
            "(asked) => fetch('/v1/chat/completions', {method: 'POST', body: JSON.stringify(asked)})"
            ".then((answer) => answer.text())",
            asked,
        )
        page.wait_for_function("(card) => card in window.shown", arg=f"{expert} device")


class Demo(Subject):
    """The demo's experts, asked in the playground as a person would."""

    def ask(self, page: Page, turn: int) -> None:
        question = _demo_question(turn)
        page.fill("#question", question["prompt"])
        with page.expect_response("**/v1/chat/completions", timeout=DEMO_PATIENCE_MS):
            page.click("#send")
        page.wait_for_selector("#answer:not([aria-busy])", state="attached", timeout=DEMO_PATIENCE_MS)
        expert, answer = page.inner_text("#decision .chosen strong"), page.inner_text("#answer")
        print(f"{question['prompt'][:50]:50}  {expert:11} {answer}")


def main() -> None:
    options = _options()
    with _demo() if options.demo else _simulated() as subject, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
        page.goto(f"http://127.0.0.1:{subject.port}/")
        page.wait_for_selector("html[data-ready]")
        page.evaluate(WATCH)
        for turn in range(subject.rounds):
            subject.ask(page, turn)
        delays = sorted(_delays(page))
        if options.pictures:
            _take_pictures(page, options.pictures, subject.name)
        browser.close()
    text = _told(subject, delays)
    print(text)
    if options.write:
        document(f"page, {subject.name}", text)
    if complaints:
        sys.exit("the browser complained: " + "; ".join(complaints))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="the demo's experts on real engines")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also keep screenshots of the page there")
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks.md")
    return parser.parse_args()


@contextmanager
def _simulated() -> Iterator[Subject]:
    timing = {"start_seconds": 0.1, "wake_seconds": 0.05, "sleep_seconds": 0.03, "ttft_seconds": 0.0}
    engines = {n: SimulatedEngine(n, weights_bytes=GIB, tokens_per_second=500, **timing) for n in EXPERTS}
    room, limits = Bytes(GIB + GIB // 2, 4 * GIB), Limits(max_wait_seconds=0.1)
    with running_server(engines, limits=limits, capacity=room) as server:
        yield Simulated("simulated experts", "python -m benchmarks.page", server.port, ROUNDS)


@contextmanager
def _demo() -> Iterator[Subject]:
    sys.path.insert(0, str(ROOT / "demo"))
    from service import running_service  # noqa: PLC0415  the demo is a folder of scripts, no package

    with running_service(ROOT / "configs/demo.yaml", console=Console()) as service:
        port = int(service.url.rpartition(":")[2])
        yield Demo("the demo's experts on vLLM", "python -m benchmarks.page --demo", port, DEMO_QUESTIONS)


def _demo_question(turn: int) -> dict[str, Any]:
    """The demo's order: one topic after another, then the first ones again, which sleep or are stopped by then."""
    rows = [json.loads(line) for line in (ROOT / "demo/data/held_out.prompts.jsonl").read_text().splitlines()]
    topic = ("french", "python", "units", "french", "python", "sql", "french", "sql", "python")[turn]
    own: list[dict[str, Any]] = [row for row in rows if row["category"] == topic]
    return own[turn]


def _take_pictures(page: Page, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        for width, height in ((1280, 900), (390, 844)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            page.screenshot(path=folder / f"{name.replace(' ', '-')}-{scheme}-{width}.png", full_page=True)


def _told(subject: Subject, delays: list[float]) -> str:
    return (
        f"## The page: {subject.name}\n\n"
        f"`{subject.command}`: {len(delays)} moves of {subject.name}, from the server's event to the card on"
        f" its new shelf in Chromium: median {statistics.median(delays):.0f} ms,"
        f" 95 % {delays[int(0.95 * len(delays))]:.0f} ms, longest {delays[-1]:.0f} ms;"
        f" {sum(delay <= 200 for delay in delays)} of them within 200 ms."
        f" {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}.\n"
    )


def _delays(page: Page) -> list[float]:
    """For each move since the page was opened: milliseconds until the page first showed the expert at its new place.

    Only times between the expert's previous and next move count. The page can be ahead of a move's event, because it
    also reads the state of all experts; that counts as 0.
    """
    moves: list[dict[str, Any]] = page.evaluate("moves.filter(({ time }) => 1000 * time >= began)")
    shown: dict[str, list[float]] = page.evaluate("shown")
    found = []
    for expert in {move["expert"] for move in moves}:
        own = [move for move in moves if move["expert"] == expert]
        times = [0.0, *(1000 * move["time"] for move in own), float("inf")]
        for number, move in enumerate(own, 1):
            moments = shown.get(f"{expert} {move['to']}", [])
            seen = [moment for moment in moments if times[number - 1] <= moment < times[number + 1]]
            if seen:
                found.append(max(0.0, min(seen) - times[number]))
    return found


if __name__ == "__main__":
    main()
