"""What a front passes on to a node beside the body: priority, the caller's key and share, and the time that is left."""

import json
import socket
import sqlite3
import threading
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.queue import Owner
from coe_server.errors import RequestError
from coe_server.http.forwarded import FORWARDED, Forwarded, read_forwarded
from coe_server.journal.store import unpacked
from coe_server.keys import Key, hashed, write_keys
from tests.cluster.servers import KEY, cluster, expert, front_settings, in_thread, node_settings, recording_node
from tests.patience import PATIENCE_SECONDS, until

# FastAPI silences it with a filter that is not per thread, and here several servers start in threads.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.UnsupportedFieldAttributeWarning")

PRIORITIES = ("high", "normal", "batch")


@given(
    st.builds(
        Forwarded,
        st.sampled_from(PRIORITIES),
        st.none()
        | st.builds(
            Owner,
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
            st.floats(1e-9, 1.0, exclude_min=True),
        ),
    )
)
def test_what_a_front_writes_a_node_reads(told):
    found = read_forwarded(told.as_header())
    assert (found.priority, found.owner and found.owner.name) == (told.priority, told.owner and told.owner.name)
    assert found.owner is None or found.owner.share == pytest.approx(told.owner.share, rel=1e-5)


@pytest.mark.parametrize(
    "value",
    [
        *("", "high", "priority=highest", "priority=high; key=a", "priority=high; key=a; share=0"),
        *("priority=high; key=a; share=2", "priority=high; key=a; share=nan", "priority=high; key=a; share=1e"),
        *("priority=high; key=a b; share=1", "priority=high; key=a; share=1; more=1"),
    ],
)
def test_a_node_refuses_what_no_front_writes(value):
    with pytest.raises(RequestError, match=FORWARDED):
        read_forwarded(value)


BODY = {"model": "coder", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory):
    """A front with two keys before a node that records."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = (("alice", {"priority": True, "weight": 1.0}), ("bob", {"weight": 3.0}))
    write_keys(file, [Key(name=name, sha256=hashed(f"key-of-{name}"), **more) for name, more in keys])
    with recording_node() as (node, seen), in_thread(front_settings({"left": node}, keys={"file": str(file)})) as front:
        until(lambda: front.ask("POST", "/v1/chat/completions", BODY, **_as("alice"))[0] == 200)
        yield front, seen


def _as(name, **headers):
    return {"content_type": "application/json", "authorization": f"Bearer key-of-{name}", **headers}


@pytest.mark.parametrize(
    ("name", "coe", "told"),
    [
        ("alice", {"priority": "high"}, "priority=high; key=alice; share=0.25"),
        ("bob", {"priority": "batch"}, "priority=batch; key=bob; share=0.75"),
        ("bob", None, "priority=normal; key=bob; share=0.75"),
    ],
)
def test_a_node_is_told_the_priority_and_whose_request_it_is(with_keys, name, coe, told):
    front, seen = with_keys
    body = BODY if coe is None else {**BODY, "coe": coe}
    assert front.ask("POST", "/v1/chat/completions", body, **_as(name))[0] == 200
    assert seen[-1][FORWARDED] == told
    assert "x-request-timeout" not in seen[-1]


def test_a_node_is_told_the_time_that_is_left(with_keys):
    front, seen = with_keys
    assert front.ask("POST", "/v1/chat/completions", BODY, **_as("bob", x_request_timeout="500"))[0] == 200
    assert 0 < float(seen[-1]["x-request-timeout"]) <= 501  # a little later than the front's own


def test_what_a_caller_writes_into_the_header_goes_nowhere(with_keys):
    front, seen = with_keys
    forged = _as("bob", x_coe_forwarded="priority=high; key=alice; share=1")
    assert front.ask("POST", "/v1/chat/completions", BODY, **forged)[0] == 200
    assert seen[-1][FORWARDED] == "priority=normal; key=bob; share=0.75"


SLOW = {"ttft_seconds": 3000.0, "max_concurrency": 1}
LONG = {"scheduling": {"max_generation_seconds": 4000}}


@pytest.fixture
def busy():
    """A front before a node whose one expert never speaks and takes one request at a time."""
    with cluster({"left": node_settings([expert("coder", **SLOW)], **LONG)}, **LONG) as (front, nodes):
        yield front, nodes["left"]


def _queue(node):
    return next(row for row in node.json("/admin/experts") if row["name"] == "coder")


def _sent(front, text="hello"):
    """A connection that has sent a request and does not read its answer."""
    body = json.dumps({"model": "coder", "stream": True, "messages": [{"role": "user", "content": text}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    wire = socket.create_connection(("127.0.0.1", front.port))
    wire.sendall(head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body))
    return wire


def test_a_client_that_hangs_up_at_the_front_frees_the_lease_and_the_place_in_the_queue_of_the_node(busy):
    front, node = busy
    first = _sent(front)
    until(lambda: _queue(node)["leases"] == 1)
    second = _sent(front)
    until(lambda: _queue(node)["queued"] == 1)
    second.close()
    until(lambda: _queue(node)["queued"] == 0)
    assert _queue(node)["leases"] == 1
    first.close()
    until(lambda: _queue(node)["leases"] == 0)
    until(lambda: front.nodes()["left"]["in_flight"] == 0)


def test_a_node_serves_high_before_batch():
    one_by_one = expert("coder", tokens_per_second=20, max_concurrency=1)
    with cluster({"left": [one_by_one]}) as (front, nodes):
        answered = []

        def ask(priority):
            assert front.chat("coder", coe={"priority": priority})[0] == 200
            answered.append(priority)

        holding = _sent(front, text="word " * 1000)
        until(lambda: _queue(nodes["left"])["leases"] == 1)
        asking = []
        for waiting, priority in enumerate(("batch", "high"), 1):
            asking.append(threading.Thread(target=ask, args=(priority,), daemon=True))
            asking[-1].start()
            until(lambda waiting=waiting: _queue(nodes["left"])["queued"] == waiting)
        holding.close()
        for one in asking:
            one.join(PATIENCE_SECONDS)
        assert answered == ["high", "batch"]


def test_the_header_counts_only_from_a_front(busy):
    _, node = busy
    as_front = {"content_type": "application/json", "authorization": f"Bearer {KEY}"}
    status, _, told = node.ask("POST", "/v1/chat/completions", BODY, x_coe_forwarded="priority=most", **as_front)
    assert (status, json.loads(told)["error"]["param"]) == (400, FORWARDED)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_node_reads_a_conversation_that_its_front_has_read_only_to_log_it(tmp_path, keeps):
    log = {"decisions": True, "prompts": keeps}
    settings = node_settings([expert("coder", tools=False)], log=log, state_directory=str(tmp_path))
    with cluster({"left": settings}) as (front, _):
        assert front.chat("coder", text="what is kept")[0] == 200
        tools = [{"type": "function", "function": {"name": "look"}}]
        status, _, body = front.chat("coder", tools=tools)  # the front knows what the expert can do
        assert (status, json.loads(body)["error"]["code"]) == (400, "no_capable_expert")
    with closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as journal:
        rows = journal.execute("SELECT packed FROM decisions LEFT JOIN prompts USING (seq)").fetchall()
    assert [packed and "what is kept" in unpacked(packed) for (packed,) in rows] == [True if keeps else None]
