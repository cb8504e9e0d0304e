"""The page of a front: its nodes with their tiers, and which of them get requests."""

import os

from axe_playwright_python.base import AXE_SCRIPT

from tests.cluster.servers import cluster, expert, node_settings


def test_each_node_shows_its_experts_by_tier_and_whether_it_gets_requests(visit):
    left = [expert("coder", preload="device"), expert("law")]
    right = [expert("coder"), expert("generalist", preload="device")]
    no_prefetch = {"scheduling": {"prefetch": False}}
    nodes = {"left": node_settings(left, **no_prefetch), "right": node_settings(right, **no_prefetch)}
    with cluster(nodes) as (front, _), visit.closes():
        front.ask("POST", "/admin/nodes/right/drain")
        page = visit(server=front).page
        page.wait_for_selector('[data-node="left"] [data-tier="device"]')
        page.wait_for_selector('[data-node="right"] [data-tier="device"]')
        assert page.inner_text('[data-node="left"] .node-state') == "takes requests"
        assert page.inner_text('[data-node="right"] .node-state') == "gets nothing new: drained"
        assert page.inner_text('[data-node="left"] .node-amount') == "1.0 GiB of 8.0 GiB of device memory used"
        tiers = page.locator('[data-node="left"] li').all_inner_texts()
        assert tiers == ["on the device: coder", "on disk: law"]
        page.evaluate(AXE_SCRIPT)
        found = page.evaluate("axe.run(document)")
        assert [(fault["id"], fault["nodes"][0]["target"]) for fault in found["violations"]] == []
        if "COE_SCREENSHOTS" in os.environ:
            page.screenshot(path=f"{os.environ['COE_SCREENSHOTS']}/nodes.png", full_page=True)
        page.close()  # before the servers


def test_a_server_alone_shows_no_nodes(visit):
    assert visit().page.locator("#nodes-section").is_hidden()
