"""Asks a real Prometheus every query of the Grafana board, after it has scraped a server under real traffic.

    python -m deploy.check_board [--seconds 40]

The experts are simulated; routing, moves, switches, fallbacks and metrics are the server's own. One expert's engine
cannot start and another lives on a server that is not there, so that their requests fall back. Needs Debian's
`prometheus`. Ends with 1 if a query finds nothing, or only zeros where there was something to see.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
BOARD = ROOT / "deploy/grafana/dashboards/coe.json"
PROMETHEUS = ROOT / "deploy/prometheus"
BIN = Path(sys.executable).parent
SCRAPE = "1s"
RATE_INTERVAL = "15s"
START_SECONDS = 60
CLIENTS = 8
QUIET = {"coe_drift", "coe_learning_steps"}  # queries that stay at 0 under steady traffic
LATER = {"coe_learning_interval_width"}  # takes 30 ratings of both experts in one category: longer than this run
FOREIGN = (
    "Ek wil graag weet hoe laat die trein vertrek",
    "zzz qqq xkcd blorp 77 !!",
    "Jaki jest najwyższy szczyt Tatr i kto go pierwszy zdobył?",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="how long the traffic lasts")
    options = parser.parse_args()
    program = shutil.which("prometheus")
    if program is None:
        print("prometheus is not installed: apt-get install prometheus", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="coe-board-") as name:
        folder = Path(name)
        with serving(folder) as server, scraping(folder, program, server) as prometheus:
            answers = send_traffic(server, options.seconds)
            print(f"{sum(answers.values())} requests answered: " + ", ".join(f"{n} x {s}" for s, n in answers.items()))
            wait_for_scrape(prometheus)
            empty = ask_everything(prometheus, options.seconds)
    for sentence in empty:
        print(f"finds nothing: {sentence}")
    return 1 if empty else 0


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that ask for something: also those in rows that are closed at first."""
    for panel in board["panels"]:
        yield from panel["panels"] if panel["type"] == "row" else [panel]


def queries() -> Iterator[tuple[str, str]]:
    """(where it stands, PromQL as Grafana would send it) for every panel's target."""
    for panel in panels(json.loads(BOARD.read_text())):
        for target in panel["targets"]:
            yield f"{panel['title']} / {target['legendFormat'] or target['refId']}", target["expr"]


def filled_in(query: str, seconds: float) -> str:
    """Grafana's variables replaced, as it does itself."""
    values = {"$__rate_interval": RATE_INTERVAL, "$__range": f"{round(seconds)}s", "$expert": ".*"}
    for name, value in values.items():
        query = query.replace(name, value)
    return query


def ask_everything(prometheus: str, seconds: float) -> list[str]:
    """Print what each query finds over the run; returns the titles of those that find no number, or only zeros."""
    empty = []
    for title, query in queries():
        series = ask_range(prometheus, filled_in(query, seconds), seconds)
        numbers = [float(value) for one in series for _, value in one["values"] if value != "NaN"]
        if not numbers and query in LATER:
            print(f"{title:55} nothing yet")
            continue
        if not numbers or (not max(numbers) and query not in QUIET):
            empty.append(title)
            continue
        print(f"{title:55} {len(series):3} series {min(numbers):10.3g} to {max(numbers):.3g}")
    broken = [
        rule for rule in get(f"{prometheus}/api/v1/rules")["data"]["groups"][0]["rules"] if rule["health"] != "ok"
    ]
    return empty + [f"alert {rule['name']}: {rule.get('lastError', rule['health'])}" for rule in broken]


def ask_range(prometheus: str, query: str, seconds: float) -> list[dict[str, Any]]:
    now = time.time()
    question = urllib.parse.urlencode({"query": query, "start": now - seconds, "end": now, "step": 2})
    found: list[dict[str, Any]] = get(f"{prometheus}/api/v1/query_range?{question}")["data"]["result"]
    return found


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server with the demo's router over simulated experts; its address."""
    router = folder / "router"
    subprocess.run([BIN / "coe-train", "fit", ROOT / "configs/train-demo.yaml", "--out", router], check=True)
    port = free_port()
    pretend = {"engine": "simulated", "weights_bytes": "1GiB", "start_seconds": 0.6, "wake_seconds": 0.05}
    pretend |= {"sleep_seconds": 0.05, "ttft_seconds": 0.01, "tokens_per_second": 400}
    experts: list[dict[str, Any]] = [{"name": name, **pretend} for name in ("french", "python", "units")]
    broken = {"engine": "vllm", "model": str(ROOT / "demo/experts/sql")}
    nowhere = {"engine": "remote", "base_url": f"http://127.0.0.1:{free_port()}/v1", "model": "none"}
    config = {
        "http": {"port": port},
        "router": {"artifact": str(router), "budget_window": 100, "exploration": 0.2},
        "memory": {"device": "2GiB", "host": "3GiB"},
        "scheduling": {"max_wait_seconds": 2, "max_generation_seconds": 10},
        "vllm": {
            "command": "/bin/false",
            "platform": "cpu",
            "kv_cache": "64MiB",
            "log_directory": str(folder / "logs"),
        },
        "state_directory": str(folder / "state"),
        "experts": [*experts, {"name": "sql", **broken}, {"name": "generalist", **nowhere}],
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    with running([BIN / "coe", "serve", folder / "serve.yaml"], f"{url}/readyz", folder / "server.log"):
        yield url


@contextmanager
def scraping(folder: Path, program: str, server: str) -> Iterator[str]:
    """Prometheus with the composition's own configuration, looking at `server`; its address."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
    config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    (job,) = config["scrape_configs"]
    del job["authorization"]  # on a loopback address the server asks for no key
    job["static_configs"] = [{"targets": [server.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{free_port()}"
    command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command.append(f"--web.listen-address={url.removeprefix('http://')}")
    with running(command, f"{url}/-/ready", folder / "prometheus.log"):
        yield url


@contextmanager
def running(command: list[Any], ready: str, log: Path) -> Iterator[None]:
    """The command, once `ready` answers 200; ended afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, env=os.environ)
    deadline = time.monotonic() + START_SECONDS
    try:
        while not answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def send_traffic(server: str, seconds: float) -> dict[int, int]:
    """Clients that ask in bursts of one topic, so that experts come and go; HTTP status -> how often."""
    rows = [json.loads(line) for line in (ROOT / "demo/data/held_out.prompts.jsonl").read_text().splitlines()]
    by_topic: dict[str, list[str]] = {}
    for row in rows:
        by_topic.setdefault(row["category"], []).append(row["prompt"])
    counts: dict[int, int] = {}
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            prompts = by_topic[draw.choice(list(by_topic))]
            for _ in range(10):
                status = ask_once(server, draw, draw.choice(prompts))
                counts[status] = counts.get(status, 0) + 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def ask_once(server: str, draw: random.Random, prompt: str) -> int:
    if draw.random() < 0.1:
        prompt = draw.choice(FOREIGN)
    model = draw.choices(("auto", "auto:cheap", "sql", "no-such-model"), (60, 30, 5, 5))[0]
    body = {"model": model, "stream": draw.random() < 0.5, "messages": [{"role": "user", "content": prompt}]}
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            rate(server, answer.headers["x-coe-decision-id"], draw.random())
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def rate(server: str, decision_id: str, score: float) -> None:
    body = json.dumps({"decision_id": decision_id, "score": score}).encode()
    request = urllib.request.Request(f"{server}/v1/feedback", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def wait_for_scrape(prometheus: str) -> None:
    """Returns once Prometheus has looked at the server after now."""
    now = time.time()
    while True:
        found = get(f"{prometheus}/api/v1/query?query=" + urllib.parse.quote("timestamp(up)"))["data"]["result"]
        if found and float(found[0]["value"][1]) > now:
            return
        time.sleep(0.2)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
