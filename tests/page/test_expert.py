"""The operator opens an expert on the page: moves, pins and restarts it, and reads the end of its log."""

import json
import os
from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from coe_server.engines.engine import Download
from coe_server.engines.log_file import log_end
from coe_server.keys import Key, Keyring, hashed
from tests.cluster.servers import cluster, expert, node_settings
from tests.http.server import running_server
from tests.page.conftest import GIB, engine

LOG = "INFO loading layer 1\nprompt: 'my secret'\nINFO <img src=x onerror=alert(1)>\n"


@pytest.fixture
def coder(tmp_path: Path):
    """A simulated expert with a log, whose download is not complete before its first start."""
    made = engine("coder", start_seconds=0.0)
    log = tmp_path / "coder.log"
    log.write_text(LOG)
    made.starts = []
    begin = made.start

    async def start(*arguments, **options):
        made.starts.append("start")
        await begin(*arguments, **options)

    made.start = start
    made.log_end = lambda count: log_end(log, count)
    made.download = lambda: None if made.starts else Download(GIB, 2 * GIB)
    return made


@pytest.fixture(params=[1280, 360])
def opened(visit, coder, request):
    with running_server({"coder": coder, "plain": engine("plain")}) as server:
        seen = visit(server=server, width=request.param)
        yield seen
        seen.page.close()  # before the server


def act(page, name, said):
    page.click(f'#expert-acts [data-act="{name}"]')
    page.wait_for_selector(f"#expert-said:has-text('{said}')")


def test_an_operator_loads_pins_restarts_and_unloads_an_expert(opened, coder):
    seen, opened = opened, opened.page
    opened.click('[data-expert="coder"] .name')
    assert opened.inner_text("#expert-title") == "coder"
    act(opened, "load", "loaded in")
    opened.wait_for_selector('[data-tier="device"] [data-expert="coder"]')
    act(opened, "device", "pinned to the device")
    act(opened, "unload", "is pinned to device")  # the server's reason
    opened.wait_for_selector("#expert-said.complaint")
    assert [complaint for complaint in seen.complaints if "409 (Conflict)" not in complaint] == []
    seen.complaints.clear()
    act(opened, "unpin", "unpinned")
    act(opened, "restart", "restarted")
    assert len(coder.starts) == 2
    act(opened, "unload", "it is evicted to disk")
    opened.wait_for_selector('[data-tier="disk"] [data-expert="coder"]')
    opened.keyboard.press("Escape")
    opened.wait_for_selector("#expert", state="hidden")


def test_the_log_of_an_engine_is_read_as_text_without_prompts(opened):
    opened = opened.page
    opened.click('[data-expert="coder"] .name')
    opened.click("#expert-log summary")
    opened.wait_for_selector("#expert-log-lines:has-text('layer 1')")
    assert opened.inner_text("#expert-log-lines").splitlines()[1:] == ["prompt: [left out]", LOG.splitlines()[2]]
    assert "operators only" in opened.inner_text("#expert-log-note")
    assert opened.evaluate("document.documentElement.scrollWidth") == opened.viewport_size["width"]
    opened.evaluate(AXE_SCRIPT)
    found = opened.evaluate("axe.run(document)")
    assert [(fault["id"], fault["nodes"][0]["target"]) for fault in found["violations"]] == []
    if "COE_SCREENSHOTS" in os.environ:
        opened.screenshot(path=f"{os.environ['COE_SCREENSHOTS']}/expert-{opened.viewport_size['width']}.png")
    opened.click("#expert-close")
    opened.click('[data-expert="plain"] .name')
    assert opened.is_hidden("#expert-log")  # it has no process


def test_a_download_is_shown_until_it_is_complete(opened):
    opened = opened.page
    opened.wait_for_selector('[data-expert="coder"] .state:has-text("downloading: 1.0 GiB of 2.0 GiB")')
    opened.click('[data-expert="coder"] .name')
    act(opened, "load", "loaded in")
    opened.wait_for_selector('[data-expert="coder"] .state:not(:has-text("downloading"))')


def test_an_expert_on_nodes_is_moved_on_the_chosen_node(visit):
    nodes = {name: node_settings([expert("coder")], scheduling={"prefetch": False}) for name in ("left", "right")}
    with cluster(nodes) as (front, _), visit.closes():
        page = visit(server=front).page
        page.wait_for_selector('[data-node="right"] [data-tier="disk"]')
        page.click('[data-expert="coder"] .name')
        page.select_option("#expert-node", "right")
        act(page, "load", "loaded")
        page.wait_for_selector('[data-node="right"] [data-tier="device"]')
        assert json.loads(front.ask("GET", "/admin/experts")[2])[0]["node"] == "right"
        page.close()  # before the servers


def test_only_the_operators_key_opens_the_page_and_its_acts(coder):
    keys = (Key(name="boss", sha256=hashed("a-secret"), admin=True), Key(name="app", sha256=hashed("other")))
    with running_server({"coder": coder}, keyring=Keyring(keys)) as locked:
        for method, path in (
            ("GET", "/"),
            ("GET", "/admin/experts/coder/log"),
            ("POST", "/admin/experts/coder/restart"),
        ):
            assert locked.ask(method, path, headers={"authorization": "Bearer other"})[0] == 403
            assert locked.ask(method, path, headers={"authorization": "Bearer a-secret"})[0] == 200
