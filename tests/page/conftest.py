"""A server with simulated engines and a hand-made router, and a real Chromium that opens its page."""

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import sync_playwright

from coe_server.cache.policy import Limits
from coe_server.cache.tiers import Bytes
from coe_server.engines.simulated import SimulatedEngine
from coe_server.http.routes.quality import quality_of
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.routing.small_artifact import OVERALL, SIZES, held_out, small_artifact

GIB = 2**30
EVALUATION = {
    "n_prompts": 100,
    "experts": OVERALL,
    "best_single": {"expert": "big", "score": 0.76},
    "router": {"score": 0.82, "mean_active_params_b": 31.0},
    "hull": [{"score": 0.43, "mean_active_params_b": 7.0}, {"score": 0.76, "mean_active_params_b": 70.0}],
    "curve": [{"score": 0.7, "mean_active_params_b": 9.0}, {"score": 0.82, "mean_active_params_b": 31.0}],
    "by_budget": [{"objective": "cheap", "score": 0.72, "mean_active_params_b": 10.0}],
    "worst_prompts": ["a confidential text"],
}

ARGUMENTS = [
    "--no-sandbox",  # tests may run as root
    "--host-resolver-rules=MAP *.example 127.0.0.1",  # names that resolve to this machine
    "--disable-features=LocalNetworkAccessChecks",  # so that the server's own refusals are tested
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def engine(name, start_seconds=0.3):
    timing = {"start_seconds": start_seconds, "wake_seconds": 0.1, "sleep_seconds": 0.05, "ttft_seconds": 0.01}
    return SimulatedEngine(name, weights_bytes=GIB, tokens_per_second=60, **timing)


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Room for one expert on the device and two in host memory."""
    folder = tmp_path_factory.mktemp("page")
    artifacts.save(small_artifact(), held_out(), None, folder / "router")
    router = Router.load(folder / "router")
    journal = Journal(folder / "journal", Retention(1000, 1e9))
    quality = quality_of(router.artifact.manifest, EVALUATION)
    engines = {name: engine(name) for name in SIZES}
    room = Bytes(GIB + GIB // 2, 4 * GIB)
    limits = Limits(max_wait_seconds=0.1, prefetch=False)  # the requested expert stays visible, on a busy machine too
    with running_server(engines, router, limits, room, journal=journal, quality=quality) as running:
        yield running
    journal.stop()


@dataclass
class Visit:
    """An open page, with its errors and the hosts that it sent requests to."""

    page: object
    address: str
    complaints: list = field(default_factory=list)
    hosts: set = field(default_factory=set)
    first_view_bytes: int = 0

    def ask(self, question):
        self.page.fill("#question", question)
        self.page.click("#send")

    def shelf_of(self, expert):
        return self.page.locator(f'.shelf:has([data-expert="{expert}"])').get_attribute("data-tier")


@pytest.fixture(scope="module")  # the driver holds an event loop, so other modules' tests could not run theirs
def chromium():
    program = os.environ.get("COE_TEST_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or name one in COE_TEST_CHROMIUM")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, served):
    """Opens the page in a browser of this size and with these preferences; checks afterwards that it had no errors.

    A test that ends its own server enters `visit.closes()` after it: an open page complains of a lost server.
    """
    opened = []

    @contextmanager
    def closes():
        yield
        for context, _ in opened:
            context.close()

    def open_page(width=1280, height=900, server=served, **taste):
        context = chromium.new_context(viewport={"width": width, "height": height}, **taste)
        context.set_default_timeout(60_000)
        found = Visit(context.new_page(), f"http://127.0.0.1:{server.port}")
        page = found.page
        page.on("console", lambda said: said.type in {"error", "warning"} and found.complaints.append(said.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("request", lambda request: found.hosts.add(request.url.split("/")[2]))
        page.on("response", lambda got: got.request.resource_type != "eventsource" and sizes.append(got))
        sizes = []
        page.goto(found.address)
        page.wait_for_selector("html[data-ready]")
        found.first_view_bytes = sum(len(got.body()) for got in list(sizes))
        opened.append((context, found))
        return found

    open_page.closes = closes
    with closes():
        yield open_page
    for _, found in opened:
        assert found.complaints == []
        assert found.hosts == {found.address.removeprefix("http://")}
