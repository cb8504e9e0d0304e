"""Nodes that are killed, frozen, cut off, restarted or slow; and a front that starts anew.

A request without a first word is answered by another node; a stream that has begun ends with an error event.
"""

import json
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.cluster.servers import as_process, cluster, expert, front_settings, in_thread, node_settings, relay
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import free_port

# FastAPI silences it with a filter that is not per thread, and here several servers start in threads.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.UnsupportedFieldAttributeWarning")

NEVER = {"ttft_seconds": 3000.0}  # no first word
SLOWLY = {"tokens_per_second": 2.0}
LONG = {"scheduling": {"max_generation_seconds": 4000}}


class Asked(threading.Thread):
    """A request in another thread, and its answer."""

    def __init__(self, front, **fields):
        super().__init__(daemon=True)
        self._front = front
        self._fields = fields
        self.start()

    def run(self):
        self.status, self.headers, self.body = self._front.chat("coder", **self._fields)

    def answer(self):
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "no answer came"
        return self.status, self.headers, self.body


@contextmanager
def only_to(front, node, *others):
    """New requests go to this node alone."""
    for other in others:
        front.ask("POST", f"/admin/nodes/{other}/drain")
    try:
        yield
    finally:
        for other in others:
            front.ask("POST", f"/admin/nodes/{other}/resume")


def stuck_on_left(front, **fields):
    """A request that has got to the node `left` and no further."""
    with only_to(front, "left", "right"):
        asked = Asked(front, **fields)
        until(lambda: front.nodes()["left"]["in_flight"] == 1)
    return asked


def require_answer_of_right(asked):
    status, headers, body = asked.answer()
    assert (status, headers["x-coe-node"], headers["x-coe-expert"]) == (200, "right", "coder"), body
    assert b"hello there" in body.replace(b'"}, "finish_reason": null}]}', b"") or b"hello" in body


class Processes:
    """`left`, whose expert never speaks, and `right`, which answers at once, as processes behind a front."""

    def __init__(self, folder):
        self._folder = folder
        self._held = ExitStack()
        self._left_port = free_port()
        self._left = ExitStack()
        self.start_left()
        right = self._held.enter_context(as_process(folder, "right", node_settings([expert("coder")]), free_port()))
        urls = {"left": f"http://127.0.0.1:{self._left_port}", "right": right.url}
        self.front = self._held.enter_context(in_thread(front_settings(urls, **LONG)))
        self.front.until_usable("left", "right")

    def start_left(self):
        settings = node_settings([expert("coder", **NEVER)], **LONG)
        self.left = self._left.enter_context(as_process(self._folder, "left", settings, self._left_port))

    def end_left(self):
        self._left.close()

    def close(self):
        self._left.close()
        self._held.close()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    made = Processes(tmp_path_factory.mktemp("nodes"))
    try:
        yield made
    finally:
        made.close()


def test_a_request_without_a_first_word_leaves_a_killed_node_and_the_node_comes_back(processes):
    asked = stuck_on_left(processes.front)
    processes.left.process.kill()
    require_answer_of_right(asked)
    processes.front.until_unusable("left")
    assert processes.front.chat("coder")[1]["x-coe-node"] == "right"
    processes.end_left()
    processes.start_left()
    processes.front.until_usable("left")


def test_a_request_without_a_first_word_leaves_a_frozen_node_and_the_node_comes_back(processes):
    processes.front.until_usable("left")
    asked = stuck_on_left(processes.front, stream=True)
    processes.left.process.send_signal(signal.SIGSTOP)
    require_answer_of_right(asked)
    assert (
        "no pulse" in processes.front.nodes()["left"]["why"] or "no snapshot" in processes.front.nodes()["left"]["why"]
    )
    processes.left.process.send_signal(signal.SIGCONT)
    processes.front.until_usable("left")


@contextmanager
def behind_a_relay(left, **front):
    """A front over two nodes in threads, `left` behind a relay."""
    with ExitStack() as held:
        node = held.enter_context(
            in_thread(node_settings([left], http={"keepalive_seconds": 0.2, "shutdown_seconds": 1}, **LONG))
        )
        right = held.enter_context(in_thread(node_settings([expert("coder")])))
        between = held.enter_context(relay(node.port))
        urls = {"left": between.url, "right": right.url}
        gate = held.enter_context(in_thread(front_settings(urls, **LONG, **front)))
        gate.until_usable("left", "right")
        yield gate, between


def test_a_request_without_a_first_word_leaves_a_node_that_is_cut_off():
    with behind_a_relay(expert("coder", **NEVER)) as (front, between):
        asked = stuck_on_left(front)
        between.swallow()
        require_answer_of_right(asked)
        assert not front.nodes()["left"]["usable"]
        between.pass_on()
        front.until_usable("left")


def test_headers_that_came_early_are_no_word_yet():
    """The node sends them while its expert is silent, so that no proxy closes the connection."""
    with behind_a_relay(expert("coder", **NEVER)) as (front, between):
        asked = stuck_on_left(front, stream=True)
        until(lambda: 'outcome="answered"' in front.ask("GET", "/metrics")[2].decode())  # the headers are there
        between.swallow()
        require_answer_of_right(asked)


def test_a_stream_that_has_begun_ends_with_an_error_event_and_with_no_word_of_another_node():
    """Before its node's connections are closed: the front says then that the node is silent."""
    with behind_a_relay(expert("coder", **SLOWLY)) as (front, between), only_to(front, "left", "right"):
        asked = Asked(front, text="word " * 1000, stream=True)
        until(lambda: "coe_time_to_first_token_seconds_count" in front.ask("GET", "/metrics")[2].decode())
        front.ask("POST", "/admin/nodes/right/resume")
        between.swallow()
        status, headers, body = asked.answer()
    events = [event.removeprefix(b"data: ") for event in body.strip().split(b"\n\n")]
    assert (status, headers["x-coe-node"]) == (200, "left")
    assert b"[DONE]" not in body
    assert json.loads(events[-1])["error"]["code"] == "engine_died"
    assert json.loads(events[-1])["error"]["message"].startswith("node 'left' is silent")
    said = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1] if event.startswith(b"{")]
    assert "".join(filter(None, said)).startswith("coder answers:"[: len("".join(filter(None, said)))])


def test_all_within_the_callers_own_deadline():
    with behind_a_relay(expert("coder", **NEVER)) as (front, _), only_to(front, "left", "right"):
        body = {"model": "coder", "messages": [{"role": "user", "content": "hello"}]}
        asked = {"content_type": "application/json", "x_request_timeout": "0.5"}
        status, _, told = front.ask("POST", "/v1/chat/completions", body, **asked)
    assert (status, json.loads(told)["error"]["code"]) == (504, "deadline_exceeded")


@contextmanager
def provider(breaks_off):
    """The server of a hosted model, which takes requests and never answers; its URL, and what it has read."""
    seen, wires = [], []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with suppress(OSError):
                while True:
                    wire, _ = listening.accept()
                    wires.append(wire)
                    seen.append(wire.recv(65536))
                    if breaks_off:
                        wire.close()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", seen
        finally:
            for wire in wires:
                wire.close()


@pytest.mark.parametrize("way", ["its server breaks off", "its node is cut off"])
def test_a_request_that_may_have_been_paid_for_is_never_sent_twice(way):
    with provider(breaks_off=way == "its server breaks off") as (url, seen), ExitStack() as held:
        hosted = {"name": "coder", "engine": "remote", "base_url": f"{url}/v1", "model": "some-model"}
        nodes = [held.enter_context(in_thread(node_settings([hosted], **LONG))) for _ in range(2)]
        between = held.enter_context(relay(nodes[0].port))
        front = held.enter_context(in_thread(front_settings({"left": between.url, "right": nodes[1].url}, **LONG)))
        front.until_usable("left", "right")
        with only_to(front, "left", "right"):
            asked = Asked(front)
            until(lambda: seen)
        if way == "its node is cut off":
            between.cut()
        status, _, body = asked.answer()
    assert status in {502, 503}, body
    assert len(seen) == 1


def test_a_front_that_starts_anew_learns_all_of_it_again():
    with in_thread(node_settings([expert("coder")])) as node:
        for _ in range(2):
            with in_thread(front_settings({"left": node.url})) as front:
                front.until_usable("left")
                assert front.chat("coder")[1]["x-coe-node"] == "left"


def test_a_drained_node_stays_drained_when_the_front_restarts_until_it_is_resumed(tmp_path):
    with in_thread(node_settings([expert("coder")])) as node:
        settings = front_settings({"left": node.url}, state_directory=str(tmp_path))
        with in_thread(settings) as front:
            front.until_usable("left")
            assert front.ask("POST", "/admin/nodes/left/drain")[0] == 200
        with in_thread(settings) as front:
            until(lambda: front.nodes()["left"]["protocol"] is not None)
            assert (front.nodes()["left"]["why"], front.chat("coder")[0]) == ("drained", 503)
            assert front.ask("POST", "/admin/nodes/left/resume")[0] == 200
        with in_thread(settings) as front:
            front.until_usable("left")


def test_a_node_that_restarts_at_its_address_is_used_again():
    port = free_port()
    with ExitStack() as held:
        with in_thread(node_settings([expert("coder")]), port):
            front = held.enter_context(in_thread(front_settings({"left": f"http://127.0.0.1:{port}"})))
            front.until_usable("left")
            assert front.chat("coder")[0] == 200
        front.until_unusable("left")
        status, headers, body = front.chat("coder")
        assert (status, json.loads(body)["error"]["code"]) == (503, "expert_unavailable")
        assert int(headers["retry-after"]) >= 1
        with in_thread(node_settings([expert("coder")]), port):
            front.until_usable("left")
            assert front.chat("coder")[0] == 200


def test_requests_go_where_the_expert_is_loaded_and_not_where_it_would_have_to_start():
    cold, warm = expert("coder", start_seconds=3000), expert("coder", preload="device")
    with cluster({"cold": [cold], "warm": [warm]}) as (front, _):
        until(lambda: front.json("/admin/experts")[0]["node"] == "warm")
        assert {front.chat("coder")[1]["x-coe-node"] for _ in range(5)} == {"warm"}
        _, headers, _ = front.chat("coder")
        assert headers["x-coe-residency"] == "device"
