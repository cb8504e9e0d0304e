"""What a request's trace says, whose child it is, and what an engine is told of it."""

import asyncio
import json
import queue
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from coe_server.app import build_server
from coe_server.build.service import build_tracing
from coe_server.cache.policy import Limits
from coe_server.config.schema import ServerConfig, TracingSettings
from coe_server.errors import ConfigError
from coe_server.http.answers.usage import Usage
from coe_server.http.apis import APIS
from coe_server.http.tracing import otel
from coe_server.http.tracing.otel import span_tracing
from coe_server.routing import artifact as artifacts
from coe_server.routing.by_name import NamedRouter
from coe_server.routing.conversation import MEDIA, Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.features import Turn
from coe_server.routing.router import Router
from tests.http.server import Running, running_server
from tests.http.test_api import Breaking, DiesAtOnce, DiesMidStream, simulated
from tests.http.test_failure import FRENCH, Says, open_stream
from tests.patience import PATIENCE_SECONDS, received_until
from tests.routing.small_artifact import SIZES, held_out, small_artifact

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID, CALLERS_SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


class Spans(InMemorySpanExporter):
    """What was exported; a request's own span is its last, and comes after the caller has its answer."""

    def __init__(self):
        super().__init__()
        self._arrived = threading.Condition()

    def export(self, spans):
        with self._arrived:
            result = super().export(spans)
            self._arrived.notify_all()
        return result

    def of_one_request(self):
        """The request's span, and its children in order of their beginning."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: any(map(is_request, self.get_finished_spans())), PATIENCE_SECONDS)
        (request,) = filter(is_request, self.get_finished_spans())
        children = [span for span in self.get_finished_spans() if span is not request]
        assert {child.parent.span_id for child in children} == {request.context.span_id}
        return request, sorted(children, key=lambda span: (span.start_time, span.end_time))


def is_request(span):
    return span.kind is SpanKind.SERVER


class Hears(Breaking):
    """Keeps the headers it is sent."""

    def __init__(self, name, deaths=()):
        super().__init__(name, list(deaths))
        self.heard = []

    def send(self, request):
        self.heard.append(dict(request.headers))
        return super().send(request)


@pytest.fixture(autouse=True)
def no_thread_of_the_sdk_is_left():
    """One that tries a silent collector again draws from `random`, which Hypothesis takes for the next test's own."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), thread.name


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
def tracing(spans):
    return tracing_to(spans, TracingSettings())


def tracing_to(spans, settings):
    return span_tracing(settings, {name: f"{name}-weights" for name in ("a", "b", *SIZES)}, SimpleSpanProcessor(spans))


def ask(server, headers=None, **fields):
    body = {"model": "a", "messages": [{"role": "user", "content": "our secret"}], **fields}
    return server.ask("POST", "/v1/chat/completions", json.dumps(body), headers)


def names(spans):
    return [span.name for span in spans]


def test_a_trace_tells_of_routing_wait_and_answer(spans, tracing):
    with running_server({"a": simulated("a")}, tracing=tracing) as server:
        headers = ask(server, {"authorization": "Bearer our secret"})[1]
        request, children = spans.of_one_request()
    assert request.name == "POST /v1/chat/completions"
    assert names(children) == ["route", "wait for a", "chat a"]
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "a",
        "gen_ai.request.stream": False,
        "coe.decision_id": headers["x-coe-decision-id"],
        "coe.expert": "a",
        "coe.reason": "requested",
        "coe.objective": "quality",
        "coe.residency": "disk",
        "coe.router_version": headers["x-coe-router-version"],
        "coe.wait_ms": float(headers["x-coe-wait-ms"]),
    }
    route, wait, answer = children
    assert answer.kind is SpanKind.CLIENT
    assert answer.attributes["gen_ai.request.model"] == "a-weights"
    assert wait.attributes["coe.residency"] == "disk"
    assert answer.attributes["http.response.status_code"] == 200
    assert answer.attributes["gen_ai.usage.input_tokens"] == 2
    assert answer.attributes["gen_ai.usage.output_tokens"] == 4
    assert names(answer.events) == ["first bytes"]
    assert request.start_time <= route.start_time <= route.end_time <= wait.start_time
    assert wait.end_time <= answer.start_time <= answer.events[0].timestamp <= answer.end_time <= request.end_time
    assert {span.status.status_code for span in (request, *children)} == {StatusCode.UNSET}
    assert not any("secret" in span.to_json() for span in (request, *children))


def test_a_stream_is_one_answer(spans, tracing):
    with running_server({"a": simulated("a")}, tracing=tracing) as server:
        assert b"[DONE]" in ask(server, stream=True)[2]
        request, children = spans.of_one_request()
    assert request.attributes["gen_ai.request.stream"] is True
    assert names(children) == ["route", "wait for a", "chat a"]
    assert names(children[-1].events) == ["first bytes"]


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_every_api_has_an_operation(spans, tracing, api):
    decision = decided("a")
    trace = tracing.begin(api, {}, {}, decision, 0.0)
    trace.close(404, None, hung_up=False)
    request, children = spans.of_one_request()
    assert request.name == f"POST {api.path}"
    assert request.attributes["gen_ai.operation.name"] in {
        *("chat", "text_completion", "embeddings"),  # the conventions' own
        *("tokenize", "rerank", "score", *MEDIA),
    }
    assert (request.attributes["error.type"], request.status.status_code) == ("404", StatusCode.UNSET)
    assert names(children) == ["route", "wait for a"]


def decided(expert):
    here = {expert: Availability("device", 0.0)}
    return NamedRouter(["a", "b"]).route(Conversation((Turn(""),)), RouteOptions(expert=expert), here)


def test_a_fallback_has_a_wait_and_an_answer_for_each_expert(spans, tracing, tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    experts = {name: Hears(name) for name in SIZES}
    experts["linguist"].deaths = [Says(500, b'{"error": {"message": "oops", "code": 500}}')]
    with running_server(experts, Router.load(tmp_path / "router"), tracing=tracing) as server:
        assert ask(server, model="auto", messages=FRENCH)[0] == 200
        request, children = spans.of_one_request()
    assert names(children) == ["route", "wait for linguist", "chat linguist", "wait for big", "chat big"]
    route, _, failed, _, answered = children
    assert (failed.status.status_code, failed.attributes["error.type"]) == (StatusCode.ERROR, "engine_error")
    assert answered.status.status_code is StatusCode.UNSET
    assert (request.attributes["coe.expert"], request.attributes["coe.reason"]) == ("big", "fallback")
    assert (route.attributes["coe.expert"], route.attributes["coe.reason"]) == ("linguist", "mapped")
    assert request.attributes["coe.category"] == "french"
    assert "error.type" not in request.attributes
    assert parent_in(experts["linguist"].heard[0]) == failed.context.span_id
    assert parent_in(experts["big"].heard[0]) == answered.context.span_id


def parent_in(headers):
    return int(headers["traceparent"].split("-")[2], 16)


def test_an_engine_that_is_asked_once_more_after_its_restart_is_waited_for_twice(spans, tracing):
    with running_server({"a": Breaking("a", [DiesAtOnce])}, tracing=tracing) as server:
        assert ask(server)[0] == 200
        request, children = spans.of_one_request()
    assert names(children) == ["route", "wait for a", "chat a", "wait for a", "chat a"]
    assert [span.attributes.get("error.type") for span in (children[2], children[4])] == ["engine_died", None]
    assert request.status.status_code is StatusCode.UNSET


def test_a_failure_is_told_by_its_code_and_never_by_its_words(spans, tracing):
    with running_server({"a": Breaking("a", [Says(401, b"you said: our secret")])}, tracing=tracing) as server:
        assert ask(server)[0] == 502
        request, children = spans.of_one_request()
    assert request.attributes["http.response.status_code"] == 502
    for span in (request, children[-1]):
        assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "engine_error")
        assert "secret" not in span.to_json()


def test_a_stream_that_breaks_off_has_the_status_that_was_sent_and_the_error(spans, tracing):
    with running_server({"a": Breaking("a", [DiesMidStream])}, tracing=tracing) as server:
        assert ask(server, stream=True)[0] == 200
        request, _children = spans.of_one_request()
    assert request.attributes["http.response.status_code"] == 200
    assert (request.status.status_code, request.attributes["error.type"]) == (StatusCode.ERROR, "engine_died")


def test_what_never_gets_an_expert_ends_while_it_waits(spans, tracing):
    with running_server({"a": simulated("a", start_seconds=30.0)}, tracing=tracing) as server:
        assert ask(server, {"x-request-timeout": "0.05"})[0] == 504
        request, children = spans.of_one_request()
    assert names(children) == ["route", "wait for a"]
    assert children[-1].attributes["error.type"] == request.attributes["error.type"] == "deadline_exceeded"


def test_a_client_that_leaves_is_told_of(spans, tracing):
    slow = simulated("a", tokens_per_second=5)
    with running_server({"a": slow}, limits=Limits(max_concurrency=1), tracing=tracing) as server:
        body = json.dumps({"model": "a", "stream": True, "messages": [{"role": "user", "content": "w " * 200}]})
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
            wire.sendall(head.encode() + body.encode())
            assert received_until(wire, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        request, children = spans.of_one_request()
    assert request.attributes["coe.hung_up"] is True
    assert names(children)[-1] == "chat a"


def test_a_choice_that_is_made_again_while_waiting_ends_the_first_wait(spans, tracing):
    first, again = decided("a"), decided("b")
    trace = tracing.begin(APIS[0], {}, {}, first, 0.0)
    trace.follows(replace(again, reason="mapped"))
    trace.granted("b", 0.0, 0.0)
    trace.first_bytes(200)
    trace.close(200, None, hung_up=False, usage=Usage(9, 8, 4))
    request, children = spans.of_one_request()
    assert names(children) == ["route", "wait for a", "wait for b", "chat b"]
    stated = {name.removeprefix("gen_ai.usage."): value for name, value in children[-1].attributes.items()}
    assert {"input_tokens": 9, "cache_read.input_tokens": 8, "output_tokens": 4}.items() <= stated.items()
    assert request.attributes["coe.decision_id"] == again.decision_id


def test_a_callers_trace_goes_on_in_ours_and_ours_in_the_engine(spans, tracing):
    engine = Hears("a")
    with running_server({"a": engine}, tracing=tracing) as server:
        ask(server, {"traceparent": CALLERS, "tracestate": "them=1"})
        request, children = spans.of_one_request()
    assert (request.context.trace_id, request.parent.span_id) == (TRACE_ID, CALLERS_SPAN)
    assert {child.context.trace_id for child in children} == {TRACE_ID}
    assert engine.heard[0]["traceparent"] == f"00-{TRACE_ID:032x}-{children[-1].context.span_id:016x}-01"
    assert engine.heard[0]["tracestate"] == "them=1"


def test_what_is_no_context_is_not_passed_on(spans, tracing):
    engine = Hears("a")
    with running_server({"a": engine}, tracing=tracing) as server:
        ask(server, {"traceparent": "nonsense", "tracestate": "them=1"})
        request, children = spans.of_one_request()
    assert request.parent is None
    assert parent_in(engine.heard[0]) == children[-1].context.span_id
    assert "tracestate" not in engine.heard[0]


@pytest.mark.parametrize("callers", [None, f"{CALLERS[:-1]}0"], ids=["by our ratio", "by the caller"])
def test_what_is_not_sampled_is_not_recorded_and_the_engine_is_told_so(spans, callers):
    engine = Hears("a")
    tracing = tracing_to(spans, TracingSettings(sample_ratio=1.0 if callers else 0.0))
    with running_server({"a": engine}, tracing=tracing) as server:
        assert ask(server, {"traceparent": callers} if callers else None)[0] == 200
    assert spans.get_finished_spans() == ()
    assert int(engine.heard[0]["traceparent"][-2:]) & 1 == 0
    assert callers is None or engine.heard[0]["traceparent"].startswith(CALLERS[:35])


def test_without_tracing_the_callers_context_reaches_the_engine_as_it_came():
    engine = Hears("a")
    context = {"traceparent": CALLERS, "tracestate": "them=1"}
    with running_server({"a": engine}) as server:
        ask(server, context)
        ask(server)
    assert context.items() <= engine.heard[0].items()
    assert not context.keys() & engine.heard[1].keys()


STARTS = """
import sys
from coe_server.app import build_server
from coe_server.config.schema import ServerConfig
build_server(ServerConfig(log={"decisions": False}, experts=[{"name": "a", "engine": "simulated"}]))
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "coe_server.http.tracing.otel"))])
"""


def test_without_tracing_no_sdk_is_loaded():
    done = subprocess.run(
        [sys.executable, "-c", STARTS], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


@contextmanager
def collector():
    """An OTLP/HTTP collector on a free port of this machine: what it was sent, request by request."""
    taken = queue.Queue()

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.put((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serve_one(tracing):
    """A whole server, as it is configured; one request to it; its end."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        pretend = {"name": "a", "engine": "simulated", "weights_bytes": 1, "start_seconds": 0, "tokens_per_second": 1e6}
        server = build_server(ServerConfig(log={"decisions": False}, tracing=tracing, experts=[pretend]))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            return ask(Running(listening.getsockname()[1], None))[0]
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


def test_traces_are_sent_by_the_time_the_server_has_ended(monkeypatch):
    with collector() as (address, taken):
        monkeypatch.setenv("OTEL_SERVICE_NAME", "another service")
        assert serve_one({"endpoint": f"{address}/here", "service_name": "ours"}) == 200
        path, sent = taken.get_nowait()
    assert path == "/here"
    assert service_and_spans(sent) == ("ours", {"POST /v1/chat/completions", "route", "wait for a", "chat a"})


@pytest.mark.parametrize("named", ["theirs", None])
def test_what_settings_leave_open_the_environment_says(monkeypatch, named):
    with collector() as (address, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        if named:
            monkeypatch.setenv("OTEL_SERVICE_NAME", named)
        tracing = span_tracing(TracingSettings(), {})
        tracing.begin(APIS[0], {}, {}, decided("a"), 0.0).close(200, None, hung_up=False)
        tracing.close()
        path, sent = taken.get_nowait()
    assert path == "/v1/traces"
    assert service_and_spans(sent)[0] == (named or "coe")


def service_and_spans(sent):
    (resource,) = sent.resource_spans
    (service,) = (one.value.string_value for one in resource.resource.attributes if one.key == "service.name")
    return service, {span.name for scope in resource.scope_spans for span in scope.spans}


def test_a_collector_that_does_not_answer_holds_up_neither_requests_nor_the_end(monkeypatch):
    monkeypatch.setattr(otel, "FLUSH_SECONDS", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # its thread ends soon after the test
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        assert serve_one({"endpoint": f"http://127.0.0.1:{deaf.getsockname()[1]}/v1/traces"}) == 200


def test_after_an_early_head_the_request_has_the_status_that_the_caller_saw(spans, tracing):
    class StartsLate(Breaking):
        async def start(self, within_seconds=None, seat=(0,)):
            await asyncio.to_thread(may_start.wait, PATIENCE_SECONDS)
            await super().start(within_seconds, seat)

    may_start = threading.Event()
    refuses = StartsLate("a", [Says(400, b'{"error": {"message": "bad", "code": 400}}')])
    with running_server({"a": refuses}, tracing=tracing, keepalive_seconds=0.01) as server:
        with open_stream(server, model="a") as client:
            client.read_until(b"HTTP/1.1 200")
            may_start.set()
            client.read_until(b'"bad"')
        request, children = spans.of_one_request()
    assert request.attributes["http.response.status_code"] == 200
    assert children[-1].attributes["http.response.status_code"] == 400


def test_lines_of_one_header_reach_the_engine_as_one():
    engine = Hears("a")
    body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "w"}]})
    twice = f"traceparent: {CALLERS}\r\ntracestate: a=1\r\ntracestate: b=2\r\n"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{twice}content-length: {len(body)}\r\n\r\n"
    with (
        running_server({"a": engine}) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire,
    ):
        wire.sendall((head + body).encode())
        assert received_until(wire, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert engine.heard[0]["tracestate"] == "a=1, b=2"


class Stuck(SpanProcessor):
    """Its end takes as long as the test likes."""

    def __init__(self):
        self.may_end, self.ended = threading.Event(), threading.Event()

    def shutdown(self):
        self.may_end.wait(PATIENCE_SECONDS)
        self.ended.set()


def test_the_end_waits_for_what_is_still_to_be_sent_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(otel, "FLUSH_SECONDS", 0.05)
    stuck = Stuck()
    span_tracing(TracingSettings(), {}, stuck).close()
    assert not stuck.ended.is_set()
    stuck.may_end.set()
    assert stuck.ended.wait(PATIENCE_SECONDS)


def test_tracing_without_its_packages_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.delitem(sys.modules, "coe_server.http.tracing.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    config = ServerConfig(tracing={}, experts=[{"name": "a", "engine": "simulated"}])
    with pytest.raises(ConfigError, match=re.escape("comes with the extra `otel` (docs/upgrade.md)")):
        build_tracing(config, config.engine_models)
