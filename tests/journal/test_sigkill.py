"""A whole server, killed without warning while clients rate its answers: what was acknowledged is there, once."""

import http.client
import json
import random
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE_SECONDS

COE = Path(sys.executable).with_name("coe")
CLIENTS = 4


def write_config(folder):
    expert = {"name": "a", "engine": "simulated", "weights_bytes": "1MiB", "tokens_per_second": 1e6}
    expert |= dict.fromkeys(("start_seconds", "wake_seconds", "sleep_seconds", "ttft_seconds"), 0)
    limits = {"queue_limit": 1000, "max_concurrency": 1000}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"experts": [expert], "scheduling": limits, "log": {"prompts": True}}))
    return path


class Server:
    """`coe serve` on a free port; it says which in its first line."""

    def __init__(self, config):
        words = [COE, "serve", config, "--port", "0"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while (line := self.process.stderr.readline()) and "http://" not in line:
            pass
        assert line, "the server ended before it listened"
        self.port = int(re.search(r"http://[^:]+:(\d+)", line)[1])
        self.drain = threading.Thread(target=self.process.stderr.read)
        self.drain.start()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.drain.join()
        self.process.stderr.close()


class Client:
    """Asks and rates until the server is gone; remembers what was acknowledged."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.acknowledged = {}
        self.asked = 0

    def work(self, port, enough):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as connection:
            try:
                while not enough(self):
                    self._ask_and_rate(connection)
            except (OSError, http.client.HTTPException):
                return

    def _ask_and_rate(self, connection):
        question = {"model": "a", "messages": [{"role": "user", "content": "well?"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(question))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        self.asked += 1
        name = answer.getheader("x-coe-decision-id")
        for score in (self.draw.random() for _ in range(1 + self.draw.randrange(2))):  # some change their mind
            self.acknowledged.pop(name, None)  # until the next word is acknowledged either may be there
            connection.request("POST", "/v1/feedback", json.dumps({"decision_id": name, "score": score}))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            self.acknowledged[name] = score


def lost_and_doubled(folder, decisions, kills):
    """Plays it through; how much was acknowledged, what of it is missing or wrong, and ids that stand twice."""
    config = write_config(folder)
    draw = random.Random(kills)
    clients = [Client(seed) for seed in range(CLIENTS)]
    share = decisions // (kills + 1)
    for life in range(kills + 1):
        server = Server(config)
        until = share * (life + 1) + (draw.randrange(share) if life < kills else 0)
        reached = threading.Event()

        def enough(_, until=until, reached=reached):
            if sum(client.asked for client in clients) >= until:
                reached.set()
            return reached.is_set() and until >= decisions

        threads = [threading.Thread(target=client.work, args=(server.port, enough)) for client in clients]
        try:
            for thread in threads:
                thread.start()
            reached.wait(900)
        finally:
            server.kill()  # in the middle of whatever it was doing
        for thread in threads:
            thread.join()
    acknowledged = {name: score for client in clients for name, score in client.acknowledged.items()}
    with closing(sqlite3.connect(folder / "state/journal.sqlite3")) as file:
        rows = file.execute("SELECT id, score FROM decisions").fetchall()
    found = dict(rows)
    missing = {name for name, score in acknowledged.items() if found.get(name) != score}
    return acknowledged, missing, len(rows) - len(found)


def test_no_acknowledged_feedback_is_lost_or_doubled_by_a_kill(tmp_path):
    acknowledged, missing, doubled = lost_and_doubled(tmp_path, decisions=200, kills=2)
    assert len(acknowledged) > 150
    assert (missing, doubled) == (set(), 0)


@pytest.mark.long
def test_ten_thousand_decisions_and_ten_kills(tmp_path):
    acknowledged, missing, doubled = lost_and_doubled(tmp_path, decisions=10_000, kills=10)
    assert len(acknowledged) >= 9_900
    assert (missing, doubled) == (set(), 0)
