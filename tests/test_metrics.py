"""Metrics: every one is documented and served, and no label is free text from a client."""

import json
import logging
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coe_server.events import EventLog
from coe_server.http.traffic import Traffic
from coe_server.journal.drift import OUTSIDE, Reference
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.metrics import METRICS, Telemetry
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from coe_server.system.process import JsonLines, TextLines
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

SECRET = "xylophone-diary"


def served_name(metric):
    return metric.name + ("_total" if metric.kind == "counter" else "")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    router = Router.load(folder, residency_tolerance=0.01, budget_window=10)
    journal = Journal(tmp_path_factory.mktemp("journal") / "file", Retention(1000, 1e9))
    traffic = Traffic(Reference({**dict.fromkeys(TEXTS, 0.3), OUTSIDE: 0.1}, 0.8, 0.1, 1000), "v1")
    engines = {name: simulated(name) for name in SIZES}
    steps = tmp_path_factory.mktemp("steps") / "learned.json"
    with running_server(engines, router=router, journal=journal, traffic=traffic, steps_file=steps) as running:
        yield running
    journal.stop()


def scrape(server):
    status, headers, raw = server.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(raw.decode())}


def value(server, name, **labels):
    samples = [sample for family in scrape(server).values() for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_every_metric_is_documented_with_its_labels_and_nothing_else_is(root):
    rows = re.findall(r"^\| `(coe_\w+)` \| (\w+) \| ([\w, ]*) \|", (root / "docs/operate.md").read_text(), re.MULTILINE)
    documented = {name: (kind, labels.strip()) for name, kind, labels in rows}
    assert documented == {served_name(one): (one.kind, ", ".join(one.labels)) for one in METRICS}


def test_every_metric_is_served_under_its_name_and_kind(server):
    server.chat(model="auto", messages=[{"role": "user", "content": TEXTS["code"]}])
    found = scrape(server)
    for metric in METRICS:
        assert found[metric.name].type == metric.kind, metric.name
    assert {name for name in found if name.startswith("coe_")} == {metric.name for metric in METRICS}


def test_a_request_is_counted_by_category_expert_and_reason(server):
    before = value(server, "coe_decisions_total", category="code", expert="big", reason="mapped")
    waits = value(server, "coe_wait_seconds_count", expert="big")
    _, headers, _ = server.chat(model="auto", messages=[{"role": "user", "content": TEXTS["code"]}])
    assert [headers[f"x-coe-{name}"] for name in ("category", "expert", "reason")] == ["code", "big", "mapped"]
    assert value(server, "coe_decisions_total", category="code", expert="big", reason="mapped") == before + 1
    assert value(server, "coe_residency", expert="big", tier="device") == 1
    assert value(server, "coe_wait_seconds_count", expert="big") == waits + 1
    assert value(server, "coe_moves_total", **{"expert": "big", "from": "disk", "to": "device"}) == 1
    assert value(server, "coe_move_bytes_total", **{"from": "disk", "to": "device"}) >= 2**30
    assert value(server, "coe_tier_bytes", tier="device") >= 2**30


def test_only_a_stream_has_a_first_token(server):
    before = value(server, "coe_time_to_first_token_seconds_count")
    server.chat(model="coder")
    assert value(server, "coe_time_to_first_token_seconds_count") == before
    messages = [{"role": "user", "content": "hello"}]
    server.ask("POST", "/v1/chat/completions", json.dumps({"model": "coder", "messages": messages, "stream": True}))
    assert value(server, "coe_time_to_first_token_seconds_count") == before + 1


def test_the_budget_is_shown_with_target_and_mean(server):
    server.chat(model="auto:cheap", messages=[{"role": "user", "content": TEXTS["code"]}])
    assert value(server, "coe_budget_target", objective="cheap") == 10.0
    assert value(server, "coe_budget_mean", objective="cheap") == SIZES["coder"]


def test_strangers_count_towards_the_out_of_domain_share(server):
    server.chat(model="auto", messages=[{"role": "user", "content": TEXTS["code"]}])  # one inside the gate
    before = value(server, "coe_out_of_domain_total")
    server.chat(model="auto", messages=[{"role": "user", "content": "ζ ξ ψ ω"}])
    assert value(server, "coe_out_of_domain_total") == before + 1
    assert 0 < value(server, "coe_out_of_domain_share") < 1


def test_nothing_a_client_makes_up_becomes_a_label_or_a_log_line(caplog):
    with caplog.at_level(logging.DEBUG), running_server({"a": simulated("a")}) as server:
        server.chat(model=SECRET)
        server.chat(model="a", messages=[{"role": "user", "content": SECRET}], user=SECRET)
        server.ask("GET", f"/{SECRET}")
        server.ask(SECRET, "/v1/models")
        server.ask("GET", "/v1/models", headers={"authorization": f"Bearer {SECRET}", "x-a": SECRET})
        server.ask("POST", f"/admin/experts/{SECRET}/load")
        assert SECRET not in server.ask("GET", "/metrics")[2].decode()
        assert value(server, "coe_requests_total", endpoint="other", status="404") >= 1
        for name in ("gone", "gone/too"):
            server.ask("GET", f"/v1/models/{name}")
        assert value(server, "coe_requests_total", endpoint="/v1/models/{name}", status="404") == 2
        assert value(server, "coe_errors_total", code="model_not_found") >= 1
    lines = [JsonLines().format(record) for record in caplog.records if record.name.startswith("coe")]
    assert any("decision_id" in json.loads(line) for line in lines)
    assert SECRET not in "".join(lines)


def test_the_line_of_a_request_has_the_decision_id_that_its_client_saw(caplog):
    with caplog.at_level(logging.INFO), running_server({"a": simulated("a")}) as server:
        _, headers, _ = server.chat(model="a")
    (record,) = [record for record in caplog.records if record.name == "coe.requests"]
    line = json.loads(JsonLines().format(record))
    assert line["decision_id"] == headers["x-coe-decision-id"]
    assert (line["status"], line["expert"], line["reason"]) == (200, "a", "requested")
    assert f'decision_id="{line["decision_id"]}"' in TextLines().format(record)


def test_prompts_are_logged_where_that_was_asked_for(caplog):
    with caplog.at_level(logging.INFO), running_server({"a": simulated("a")}, log_prompts=True) as server:
        server.chat(model="a", messages=[{"role": "user", "content": SECRET}])
    assert SECRET in "".join(JsonLines().format(record) for record in caplog.records if record.name == "coe.requests")


def test_a_move_is_a_share_of_what_its_tiers_have_been_measured_to_do():
    telemetry, events = Telemetry(), EventLog()
    events.subscribe(telemetry.saw)
    telemetry.bandwidth.measured("host", "device", 8e9)
    for tiers, seconds in ((("host", "device"), 0.5), (("disk", "device"), 1.0), (("disk", "device"), 4.0)):
        source, target = tiers
        events.record("move", expert="a", **{"from": source, "to": target}, seconds=seconds, bytes=2_000_000_000)
    assert telemetry.bandwidth.shares == {("host", "device"): 0.5, ("disk", "device"): 0.25}
    assert telemetry.bandwidth.bytes_per_second == {("host", "device"): 8e9, ("disk", "device"): 2e9}
