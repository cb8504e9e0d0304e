"""Routers drafted from three examples a topic, served over real engines: held-out questions with and without handover.

Used by `python -m benchmarks.handover --served`; what `handover.py` replays for the same questions
stands beside it.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
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

from benchmarks.handover import BOOTSTRAP, CONFIG, DRAWS, EXAMPLES, ROOT, example_routes, read, unrouted
from coe_server.routing.router import Router
from demo.service import Service, running_service
from router_training import in_silence
from router_training.config import read_config
from router_training.data.dataset import Dataset
from router_training.draft_routes import draft_routes
from router_training.evaluation.evaluation import decide
from router_training.evaluation.handover import Played, Stage, by_rule, gain_of

DEMO = ROOT / "configs/demo.yaml"
ROOM = {"device": "1200MiB", "host": "6GiB"}  # for all five: times are of answers, not of moves
LONGEST_ANSWER_TOKENS = 48
READY_SECONDS = 900.0
ASK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer. `first`: the expert that was unsure; `first_byte`: seconds; `tokens`: of the answer."""

    is_right: bool
    expert: str
    first: str | None
    first_byte: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Draw:
    """The same questions to one draft's router without and with handover."""

    number: int
    router: Router
    without: Sequence[Answer]
    with_it: Sequence[Answer]


def served(questions: int) -> str:
    """The result as Markdown, of DRAWS drafts. `questions`: of the held-out ones, the same for each."""
    held_out = read("held_out")
    asked = held_out.rows(np.sort(np.random.default_rng(0).permutation(len(held_out))[:questions]))
    rights = {row["prompt"]: row["answer"] for row in _rows("held_out.prompts.jsonl")}
    prompts = [one.turns[-1].text for one in asked.conversations]
    draws = []
    with tempfile.TemporaryDirectory(prefix="coe-handover-") as made:
        folder = Path(made)
        routers = [_drafted(folder / f"router-{draw}", draw) for draw in range(DRAWS)]
        config = _write(folder, 0, None)
        with running_service(config, console=Console(stderr=True), ready_seconds=READY_SECONDS) as service:
            _warm_up(service, routers[0])
            for draw, router in enumerate(routers):
                found = []
                for handover in (None, {"at_most": 1}):
                    _write(folder, draw, handover)
                    service.post("/admin/reload")
                    found.append([_ask(service, prompt, rights[prompt]) for prompt in prompts])
                draws.append(Draw(draw, router, *found))
    return table(asked, draws)


def _drafted(folder: Path, draw: int) -> Router:
    routes, data = folder.with_suffix(".yaml"), ROOT / "demo/data"
    known = {one.name: {"active_params_b": one.active_params_b} for one in read_config(CONFIG).experts}
    routes.write_text(yaml.safe_dump(example_routes(read("train"), random.Random(draw)) | {"experts": known}))
    draft_routes(routes, folder, [data / "train.prompts.jsonl"], [data / "train.outcomes.jsonl"])
    return Router.load(folder)


def _write(folder: Path, draw: int, handover: dict[str, Any] | None) -> Path:
    """The demo's configuration with this router, all experts loaded, and without its adapters."""
    settings = yaml.safe_load(DEMO.read_text())
    experts = [one for one in settings["experts"] if one["engine"] == "vllm"]
    settings["experts"] = [
        {**one, "model": str((DEMO.parent / one["model"]).resolve()), "preload": "device"} for one in experts
    ]
    router: dict[str, Any] = {"artifact": str(folder / f"router-{draw}")}
    if handover is not None:
        router["handover"] = handover
    settings["vllm"] |= {"command": str(ROOT / ".venv-vllm/bin/vllm"), "log_directory": str(folder / "logs")}
    file = folder / "serve.yaml"
    file.write_text(
        yaml.safe_dump(settings | {"router": router, "memory": ROOM, "state_directory": str(folder / "state")})
    )
    return file


def _warm_up(service: Service, router: Router) -> None:
    """A first answer with log-probabilities of each expert, which may compile what it needs."""
    for name in router.expert_names:
        body = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "logprobs": True}
        with _posted(service, body) as (answer, _):
            answer.read()


def _ask(service: Service, prompt: str, right: str) -> Answer:
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "stream": True}
    body |= {"max_tokens": LONGEST_ANSWER_TOKENS, "stream_options": {"include_usage": True}}
    with _posted(service, body) as (answer, began):
        begun = answer.read(1)
        first_byte = time.perf_counter() - began
        lines = (begun + answer.read()).decode().splitlines()
        expert, first = str(answer.getheader("x-coe-expert")), answer.getheader("x-coe-handed-over-from")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    said = "".join(choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ()))
    written = next(event["usage"]["completion_tokens"] for event in events if event.get("usage"))
    return Answer(said == right, expert, first, first_byte, written)


@contextmanager
def _posted(service: Service, body: dict[str, Any]) -> Iterator[tuple[Any, float]]:
    with closing(HTTPConnection(urlsplit(service.url).netloc, timeout=ASK_SECONDS)) as connection:
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer, began


def table(asked: Dataset, draws: Sequence[Draw]) -> str:
    """Each draw, and the mean gain."""
    found = [_row(asked, draw) for draw in draws]
    gains, plain, replayed = ([one[place] for _, *one in found] for place in range(3))
    return "\n".join(
        [
            "## Unsure answers handed over by a server",
            "",
            f"`TORCHDYNAMO_DISABLE=1 python -m benchmarks.handover --served {len(asked)}`: {len(asked)} held-out"
            " questions of the demo to five vLLM engines on the CPU, one after the other, streamed, all experts loaded;"
            f" routers from `coe-train draft` with {EXAMPLES} examples a topic, each with its own rule, and"
            " `handover: {at_most: 1}`. *Replayed*: by the recorded outcomes of the same questions. Cost: active"
            " parameters times tokens, given-up answers included.",
            f"Mean gain {mean(gains):+.1f} points at equal cost ({mean(plain):+.1f} at its own cost); replayed"
            f" {mean(replayed):+.1f} at equal cost.",
            "",
            "| draft, its rule | right without | with handover | gain at equal cost, points | replayed | handed over"
            " | as replayed | first byte without, ms | with | of those handed over | cost |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(line for line, *_ in found),
        ]
    )


def _row(asked: Dataset, draw: Draw) -> tuple[str, float, float, float]:
    """The draw's line; its gain at equal cost, its gain, and the replayed one at equal cost, in points."""
    manifest = draw.router.artifact.manifest
    handover = manifest.objectives["quality"].handover
    assert handover is not None, "a draft with outcomes measures a handover"
    chosen = decide(draw.router, asked, "quality", in_silence).chosen
    stage = unrouted(asked, chosen, np.average(asked.scores, axis=0))
    replay = by_rule(stage, manifest.certainty_models, handover.rule)
    played, before = (_played(stage, answers, handover.tokens) for answers in (draw.with_it, draw.without))
    gain, replayed = gain_of(stage, played, BOOTSTRAP), gain_of(stage, replay, BOOTSTRAP)
    plain = 100 * float(played.scores.mean() - before.scores.mean())
    cells = [
        f"{draw.number + 1}: {handover.tokens} tokens, margin {handover.margin:.2f}"
        + ("" if handover.shipped else ", not shipped"),
        f"{before.scores.mean():.1%}",
        f"{played.scores.mean():.1%}",
        f"{100 * gain.gain:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
        f"{100 * replayed.gain:+.1f}",
        f"{played.handed.mean():.1%}",
        f"{float((played.handed == replay.handed).mean()):.1%}",
        _milliseconds(draw.without),
        _milliseconds(draw.with_it),
        _milliseconds([one for one in draw.with_it if one.first is not None]),
        f"{float(played.spent.mean() / before.spent.mean()):.2f} x",
    ]
    return f"| {' | '.join(cells)} |", 100 * gain.gain, plain, 100 * replayed.gain


def _played(stage: Stage, answers: Sequence[Answer], judged_tokens: int) -> Played:
    """What was served. A given-up answer had as many tokens as are judged, or as it was recorded with."""
    places = {name: place for place, name in enumerate(stage.dataset.experts)}
    spent = [
        stage.costs[places[one.expert]] * one.tokens
        + (
            0.0
            if one.first is None
            else stage.costs[places[one.first]] * min(judged_tokens, lengths[places[one.first]] * stage.unit)
        )
        for one, lengths in zip(answers, stage.lengths, strict=True)
    ]
    return Played(
        np.array([float(one.is_right) for one in answers]),
        np.array(spent) / stage.unit,
        np.array([one.first is not None for one in answers]),
    )


def _milliseconds(answers: Sequence[Answer]) -> str:
    return f"{1000 * median(one.first_byte for one in answers):.0f}" if answers else "-"


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "demo/data" / name).read_text().splitlines()]
