"""What one key can take from the others: not their places in a queue, and not their turn."""

import json
import threading
from functools import partial

import pytest

from coe_server.cache.policy import Limits
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.http.test_fan_out_waits import Held, held
from tests.patience import until

KEYS = {name: f"coe-{name}" for name in ("alice", "bob", "urgent", "boss")}
RING = Keyring(
    (
        Key(name="alice", sha256=hashed(KEYS["alice"])),
        Key(name="bob", sha256=hashed(KEYS["bob"])),
        Key(name="urgent", sha256=hashed(KEYS["urgent"]), priority=True),
        Key(name="boss", sha256=hashed(KEYS["boss"]), admin=True),
    )
)


def ask(server, name, path="/v1/chat/completions", **fields):
    body = {"model": "math", "messages": [{"role": "user", "content": "hello"}], **fields}
    headers = {} if name is None else {"authorization": f"Bearer {KEYS[name]}"}
    status, headers, raw = server.ask("POST", path, json.dumps(body), headers)
    return status, headers, json.loads(raw)


def holds(server, leases_and_queued):
    return held(server) == leases_and_queued


def test_a_key_that_fills_its_share_of_the_queue_leaves_room_for_another():
    gate, limits = threading.Event(), Limits(max_concurrency=1, queue_limit=8)
    with running_server({"math": Held(gate)}, keyring=RING, on_loopback=False, limits=limits) as server:
        threads, statuses = [], []

        def begin(name):
            threads.append(threading.Thread(target=lambda: statuses.append((name, ask(server, name)[0]))))
            threads[-1].start()

        try:
            for number in range(5):
                begin("alice")
                until(partial(holds, server, (1, number)))
            status, headers, body = ask(server, "alice")
            assert (status, body["error"]["code"]) == (429, "queue_full")
            assert "key 'alice' already waits for 4 answers, its share of 8" in body["error"]["message"]
            assert int(headers["retry-after"]) >= 1
            begin("bob")
            until(partial(holds, server, (1, 5)))
        finally:
            gate.set()
            for thread in threads:
                thread.join()
        assert sorted(statuses) == [("alice", 200)] * 5 + [("bob", 200)]


@pytest.fixture(scope="module")
def server():
    with running_server({"math": simulated("math")}, keyring=RING, on_loopback=False) as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route"])
def test_only_a_key_that_may_overtakes_others(server, path):
    urgent = {"coe": {"priority": "high"}}
    status, _, body = ask(server, "alice", path, **urgent)
    assert (status, body["error"]["code"]) == (403, "forbidden")
    assert body["error"]["message"] == (
        "key 'alice' may not use coe.priority 'high'; omit it, or create a key that may (coe keys add --priority)"
    )
    assert [ask(server, name, path, **urgent)[0] for name in ("urgent", "boss")] == [200, 200]
    for priority in ("normal", "batch", None):
        assert ask(server, "alice", path, coe={"priority": priority})[0] == 200


def test_where_there_are_no_keys_everything_may_be_urgent():
    with running_server({"math": simulated("math")}) as server:
        assert ask(server, None, coe={"priority": "high"})[0] == 200


def test_shares_go_by_weight_and_make_a_whole():
    keys = tuple(Key(name=f"k{n}", sha256=hashed(f"k{n}"), weight=weight) for n, weight in enumerate((1, 1, 2)))
    ring = Keyring(keys)
    assert [ring.share(key) for key in keys] == [0.25, 0.25, 0.5]
    assert Keyring(keys[:1]).share(keys[0]) == 1.0
    assert Keyring().share(keys[0]) == 1.0  # it was removed while its request went on
