"""A router drafted from three examples a topic, served over real engines: held-out questions with and without handover.

Used by `python -m benchmarks.handover --served`; prints what `handover.py` replays for the same questions beside it.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import mean, median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml
from rich.console import Console

from benchmarks.handover import CONFIG, EXAMPLES, ROOT, example_routes, read, unrouted
from coe_server.routing.router import Router
from demo.service import Service, running_service
from router_training import in_silence
from router_training.config import read_config
from router_training.data.dataset import Dataset
from router_training.draft_routes import draft_routes
from router_training.evaluation.evaluation import decide
from router_training.evaluation.handover import by_rule

DEMO = ROOT / "configs/demo.yaml"
ROOM = {"device": "1200MiB", "host": "6GiB"}  # for all five: times are of answers, not of moves
LONGEST_ANSWER_TOKENS = 48
READY_SECONDS = 900.0
ASK_SECONDS = 120.0
WITHOUT, WITH = "without", "with handover"


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer. `cost`: active parameters times tokens, those of an abandoned answer included."""

    is_right: bool
    expert: str
    first: str | None  # the expert that was unsure
    first_byte: float  # seconds
    cost: float


def served(draw: int, questions: int) -> str:
    """The result as Markdown."""
    held_out = read("held_out")
    chosen = np.sort(np.random.default_rng(draw).permutation(len(held_out))[:questions])
    asked = held_out.rows(chosen)
    rights = {row["prompt"]: row["answer"] for row in _rows("held_out.prompts.jsonl")}
    with tempfile.TemporaryDirectory(prefix="coe-handover-") as made:
        folder = Path(made)
        router = _drafted(folder, draw)
        config = folder / "serve.yaml"
        _write(config, folder, None)
        answers: dict[str, list[Answer]] = {}
        console = Console(stderr=True)
        with running_service(config, console=console, ready_seconds=READY_SECONDS) as service:
            _warm_up(service, router)
            for name, handover in ((WITHOUT, None), (WITH, {"at_most": 1})):
                _write(config, folder, handover)
                service.post("/admin/reload")
                texts = [one.turns[-1].text for one in asked.conversations]
                answers[name] = [_ask(service, text, rights[text], router) for text in texts]
    return table(asked, answers, router, draw)


def _drafted(folder: Path, draw: int) -> Router:
    routes, data = folder / "routes.yaml", ROOT / "demo/data"
    known = {one.name: {"active_params_b": one.active_params_b} for one in read_config(CONFIG).experts}
    routes.write_text(yaml.safe_dump(example_routes(read("train"), random.Random(draw)) | {"experts": known}))
    draft_routes(routes, folder / "router", [data / "train.prompts.jsonl"], [data / "train.outcomes.jsonl"])
    return Router.load(folder / "router")


def _write(config: Path, folder: Path, handover: dict[str, Any] | None) -> None:
    """The demo's configuration with this router and all experts loaded."""
    settings = yaml.safe_load(DEMO.read_text())
    settings["experts"] = [
        {**one, "model": str((DEMO.parent / one["model"]).resolve()), "preload": "device"}
        for one in settings["experts"]
    ]
    router: dict[str, Any] = {"artifact": str(folder / "router")}
    if handover is not None:
        router["handover"] = handover
    settings["vllm"] |= {"command": str(ROOT / ".venv-vllm/bin/vllm"), "log_directory": str(folder / "logs")}
    config.write_text(
        yaml.safe_dump(settings | {"router": router, "memory": ROOM, "state_directory": str(folder / "state")})
    )


def _warm_up(service: Service, router: Router) -> None:
    """A first answer with log-probabilities of each expert, which may compile what it needs."""
    for name in router.expert_names:
        body = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "logprobs": True}
        with _posted(service, body) as (answer, _):
            answer.read()


def _ask(service: Service, text: str, right: str, router: Router) -> Answer:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True}
    body |= {"max_tokens": LONGEST_ANSWER_TOKENS, "stream_options": {"include_usage": True}}
    with _posted(service, body) as (answer, began):
        begun = answer.read(1)
        first_byte = time.perf_counter() - began
        lines = (begun + answer.read()).decode().splitlines()
        expert, first = str(answer.getheader("x-coe-expert")), answer.getheader("x-coe-handed-over-from")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    said = "".join(choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ()))
    written = next(event["usage"]["completion_tokens"] for event in events if event.get("usage"))
    costs = dict(zip(router.expert_names, router.artifact.manifest.costs("quality"), strict=True))
    cost = costs[expert] * written + (costs[first] * _tokens(router) if first else 0.0)
    return Answer(said == right, expert, first, first_byte, cost)


@contextmanager
def _posted(service: Service, body: dict[str, Any]) -> Iterator[tuple[Any, float]]:
    with closing(HTTPConnection(urlsplit(service.url).netloc, timeout=ASK_SECONDS)) as connection:
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer, began


def _tokens(router: Router) -> int:
    handover = router.artifact.manifest.objectives["quality"].handover
    assert handover is not None, "a draft with outcomes measures a handover"
    return handover.tokens


def table(asked: Dataset, answers: Mapping[str, Sequence[Answer]], router: Router, draw: int) -> str:
    """Both runs, and what the recorded outcomes say of the same questions."""
    found = decide(router, asked, "quality", in_silence)
    overall = np.average(asked.scores, axis=0)
    stage, rows = unrouted(asked, found.chosen, overall), np.arange(len(asked))
    handover = router.artifact.manifest.objectives["quality"].handover
    assert handover is not None
    played = by_rule(stage, router.artifact.manifest.certainty_models, handover.rule)
    replayed = {WITHOUT: asked.scores[rows, found.chosen], WITH: played.scores}
    shares = {WITHOUT: 0.0, WITH: float(played.handed.mean())}
    spent = {WITHOUT: stage.spent[rows, found.chosen], WITH: played.spent}
    base = mean(one.cost for one in answers[WITHOUT])
    same = mean(
        (one.first is not None) == handed for one, handed in zip(answers[WITH], played.handed.tolist(), strict=True)
    )
    lines = [
        f"| {name} | {mean(one.is_right for one in ones):.1%} | {float(replayed[name].mean()):.1%}"
        f" | {mean(one.first is not None for one in ones):.1%} | {shares[name]:.1%}"
        f" | {_milliseconds([one.first_byte for one in ones])}"
        f" | {_milliseconds([one.first_byte for one in ones if one.first is not None])}"
        f" | {mean(one.cost for one in ones) / base:.2f} x"
        f" | {float(spent[name].mean() / spent[WITHOUT].mean()):.2f} x |"
        for name, ones in answers.items()
    ]
    gain = 100 * (mean(one.is_right for one in answers[WITH]) - mean(one.is_right for one in answers[WITHOUT]))
    return "\n".join(
        [
            "## Unsure answers handed over by a server",
            "",
            f"`TORCHDYNAMO_DISABLE=1 python -m benchmarks.handover --served {len(asked)} --draw {draw}`:"
            f" {len(asked)} held-out questions of the demo to five vLLM engines on the CPU, one after the other,"
            f" streamed; a router from `coe-train draft` with {EXAMPLES} examples a topic, its own rule"
            f" ({handover.tokens} tokens, margin {handover.margin:.2f}), `handover: {{at_most: 1}}`, all experts"
            " loaded. *Replayed*: by the recorded outcomes of the same questions. Cost: active parameters times tokens;"
            " a given-up answer counts with all tokens that are judged, also if it ended before.",
            f"Handover gains {gain:+.1f} points; {same:.0%} of the questions are handed over, or not, as replayed.",
            "",
            "| router | right | replayed | handed over | replayed | first byte, ms | of those handed over | cost"
            " | replayed |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * median(seconds):.0f}" if seconds else "-"


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "demo/data" / name).read_text().splitlines()]
