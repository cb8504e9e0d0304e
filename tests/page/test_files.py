"""The page's files as they are served, without a browser."""

import json
import re

import pytest

from coe_server.cache.tiers import Bytes
from tests.http.server import running_server
from tests.page.conftest import GIB, engine

STATIC = "coe_server/http/routes/static"


@pytest.fixture(scope="module")
def files(root):
    return {path.name: path.read_text(encoding="utf-8") for path in (root / STATIC).iterdir()}


def test_every_file_comes_with_a_policy_that_allows_nothing_from_elsewhere(served, files):
    for path in ["/", *(f"/page/{name}" for name in files)]:
        status, headers, _ = served.ask("GET", path)
        assert status == 200
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy.pop("default-src") == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert headers["x-content-type-options"] == "nosniff"
    assert served.ask("GET", "/page/routes.py")[0] == 404
    assert served.ask("GET", "/page/..%2froutes.py")[0] == 404


def test_no_file_reads_data_as_markup_or_names_another_host(files):
    for name, text in files.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
        elsewhere = set(re.findall(r"https?://[^\"'\s)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not elsewhere, name
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)| on\w+=", files["index.html"])


def test_the_pages_data_has_no_texts_of_users(served):
    status, _, raw = served.ask("GET", "/admin/quality")
    assert status == 200
    assert set(json.loads(raw)) == {"prompts", "best_single", "router", "experts", "hull", "curve", "budgets"}
    assert b"confidential text" not in raw
    served.chat(model="auto", messages=[{"role": "user", "content": "bonjour my secret"}])
    raw = served.ask("GET", "/admin/decisions?limit=1")[2]
    assert json.loads(raw)[0]["expert"] == "linguist"
    assert b"secret" not in raw


def test_the_page_is_the_operators(served):
    for path in ("/", "/page/page.js", "/admin/overview", "/admin/decisions", "/admin/quality"):
        assert served.ask("GET", path, headers={"origin": "https://elsewhere.example"})[0] == 403


def test_the_overview_has_the_tiers_in_bytes(served):
    tiers = json.loads(served.ask("GET", "/admin/overview")[2])["tiers"]
    assert tiers["device"]["capacity"] == 3 * 2**29
    assert 0 <= tiers["device"]["used"] <= tiers["device"]["capacity"]
    assert tiers["device"]["cards"] == [{"used": tiers["device"]["used"], "capacity": 3 * 2**29}]


def test_the_overview_has_each_card():
    with running_server({"one": engine("one", start_seconds=0)}, capacity=Bytes((2 * GIB, 3 * GIB), GIB)) as server:
        server.ask("POST", "/admin/experts/one/load")
        device = json.loads(server.ask("GET", "/admin/overview")[2])["tiers"]["device"]
    assert device == {
        "used": GIB,
        "capacity": 5 * GIB,
        "cards": [{"used": GIB, "capacity": 2 * GIB}, {"used": 0, "capacity": 3 * GIB}],
    }
