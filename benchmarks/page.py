"""How long after a move the page shows it: from the server's own event to the expert's card on its new shelf.

Run with `python -m benchmarks.page`; needs a Chromium and playwright (`make browser`).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.document import document
from coe_server.cache.scheduler import Limits
from coe_server.cache.tiers import Bytes
from coe_server.engines.simulated import SimulatedEngine
from tests.http.server import running_server

GIB = 2**30
EXPERTS = ("coder", "linguist", "mathematician")
ROUNDS = 30
WATCH = """() => {
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


def main() -> None:
    timing = {"start_seconds": 0.1, "wake_seconds": 0.05, "sleep_seconds": 0.03, "ttft_seconds": 0.0}
    engines = {n: SimulatedEngine(n, weights_bytes=GIB, tokens_per_second=500, **timing) for n in EXPERTS}
    room, limits = Bytes(GIB + GIB // 2, 4 * GIB), Limits(max_wait_seconds=0.1)
    with running_server(engines, limits=limits, capacity=room) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector("html[data-ready]")
        page.evaluate(WATCH)
        for turn in range(ROUNDS):
            expert = EXPERTS[turn % len(EXPERTS)]
            server.ask("POST", "/v1/chat/completions", json.dumps({"model": expert, "messages": _question()}))
            page.wait_for_selector(f'[data-tier="device"] [data-expert="{expert}"]')
        delays = sorted(_delays(page))
        browser.close()
    text = (
        "## The page\n\n"
        f"`python -m benchmarks.page`: {len(delays)} moves of simulated experts, from the server's event to the card on"
        f" its new shelf in Chromium: median {statistics.median(delays):.0f} ms,"
        f" 95 % {delays[int(0.95 * len(delays))]:.0f} ms, longest {delays[-1]:.0f} ms;"
        f" {sum(delay <= 200 for delay in delays)} of them within 200 ms."
        f" {os.cpu_count()} cores, load average {os.getloadavg()[0]:.0f} (other jobs).\n"
    )
    print(text)
    if "--keep" in sys.argv:
        document("page", text)


def _question() -> list[dict[str, str]]:
    return [{"role": "user", "content": "well?"}]


def _delays(page: Page) -> list[float]:
    """For each move when its expert was first seen where it went, in milliseconds after it.

    Between the same expert's moves before and after; a look at the server may have shown it even before the event.
    """
    moves: list[dict[str, Any]] = page.evaluate("moves")
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
