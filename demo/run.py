"""The demo: starts the service, asks it questions one by one and all at once, and shows what it did. Ends by itself.

python demo/run.py [--json FILE] [--config FILE] [--patience SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from openai import AsyncOpenAI, OpenAI
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from service import Service, running_service

ROOT = Path(__file__).resolve().parent.parent
TOPICS = ("french", "python", "units", "sql", "facts")
TOUR = [*(topic for topic in TOPICS for _ in range(2)), "french", "python", "french", "python"]
MOVES = {
    "disk -> device": "cold start",
    "host -> device": "wake",
    "device -> host": "sleep",
    "host -> disk": "stop a sleeper",
    "device -> disk": "stop",
}
LONGEST_ANSWER_TOKENS = 48
PATIENCE_SECONDS = 300.0
console = Console(width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True)
class Asked:
    """One answered question.

    If the headers of a stream were sent before its wait ended, to keep it alive, `first_token_ms` measures the wait.
    """

    question: str
    answer: str
    right: bool
    category: str
    expert: str
    reason: str
    residency: str
    wait_ms: float
    first_token_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write everything that was seen to this file")
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs/demo.yaml", help="the server's (default configs/demo.yaml)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help="longest wait for the server, an answer and a move; a busy machine needs more (default 300)",
    )
    options = parser.parse_args()
    patience = options.patience
    served = served_experts(options.config)
    console.rule(f"a composition of {len(served)} tiny experts")
    with running_service(options.config, console=console, ready_seconds=patience) as service:
        console.print("The server is ready. One question after the other, through the official openai client:")
        tour = take_tour(service, patience)
        console.print("\nNow every held-out question at once:")
        held_out = asyncio.run(ask_all(service, patience))
        put_away(service, patience)
        moves = list(service.moves)
    show_moves(moves)
    result = compare(held_out, served)
    if options.json:
        options.json.write_text(json.dumps({"tour": [asdict(a) for a in tour], "moves": moves, **result}, indent=1))


def take_tour(service: Service, patience: float) -> list[Asked]:
    """Ask each expert twice, then alternate between two; show each answer as it comes."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=patience, max_retries=0)
    questions = by_category(read_rows("held_out.prompts.jsonl"))
    table = Table(box=None)
    for column in ("question", "answer"):
        table.add_column(column, no_wrap=True, overflow="ellipsis", max_width=40)
    for column in ("category", "expert", "reason", "was in"):
        table.add_column(column, no_wrap=True)
    for column in ("wait", "first token"):
        table.add_column(column, no_wrap=True, justify="right")
    asked = []
    with console.status("asking") as status:
        for topic in TOUR:
            row = questions[topic].pop(0)
            status.update(f"asking: {row['prompt']}")
            asked.append(ask(client, row))
            mark = "" if asked[-1].right else "[red](wrong)[/red] "
            a = asked[-1]
            table.add_row(
                *(escape(a.question), mark + escape(a.answer), a.category, a.expert, a.reason, a.residency),
                *(f"{a.wait_ms:,.0f} ms", f"{a.first_token_ms:,.0f} ms"),
            )
    console.print(table)
    return asked


def ask(client: OpenAI, row: dict[str, Any]) -> Asked:
    began = time.perf_counter()
    raw = client.chat.completions.with_raw_response.create(
        model="auto",
        messages=[{"role": "user", "content": row["prompt"]}],
        max_tokens=LONGEST_ANSWER_TOKENS,
        temperature=0,
        stream=True,
    )
    pieces: list[str] = []
    first_token = None
    for chunk in raw.parse():
        if chunk.choices and chunk.choices[0].delta.content:
            first_token = first_token or time.perf_counter()
            pieces.append(chunk.choices[0].delta.content)
    return judged(row, "".join(pieces), raw.headers, 1000 * ((first_token or time.perf_counter()) - began))


def judged(row: dict[str, Any], answer: str, headers: Any, first_token_ms: float) -> Asked:
    return Asked(
        question=row["prompt"],
        answer=answer,
        right=answer.strip() == row["answer"],
        category=headers["x-coe-category"],
        expert=headers["x-coe-expert"],
        reason=headers["x-coe-reason"],
        residency=headers["x-coe-residency"],
        wait_ms=float(headers.get("x-coe-wait-ms", first_token_ms)),
        first_token_ms=first_token_ms,
    )


async def ask_all(service: Service, patience: float) -> list[Asked]:
    """Every held-out question at once; the service decides the order in which experts are loaded."""
    rows = read_rows("held_out.prompts.jsonl")
    client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=patience, max_retries=0)

    async def one(row: dict[str, Any]) -> Asked:
        began = time.perf_counter()
        raw = await client.chat.completions.with_raw_response.create(
            model="auto",
            messages=[{"role": "user", "content": row["prompt"]}],
            max_tokens=LONGEST_ANSWER_TOKENS,
            temperature=0,
        )
        answer = raw.parse().choices[0].message.content or ""
        return judged(row, answer, raw.headers, 1000 * (time.perf_counter() - began))

    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    asked = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("answers", total=len(rows))
        for answer in asyncio.as_completed([one(row) for row in rows]):
            asked.append(await answer)
            progress.advance(bar)
    await client.close()
    return asked


def put_away(service: Service, patience: float) -> None:
    """The one move that traffic seldom causes: an operator sends an expert from the device straight to disk."""
    idle = (
        one
        for one in service.get("/admin/experts")
        if one["state"] == "device" and not one["leases"] and not one["base"]
    )
    expert = next(idle)["name"]
    console.print(f"Last, as an operator would: POST /admin/experts/{expert}/unload.")
    service.post(f"/admin/experts/{expert}/unload")
    deadline = time.monotonic() + patience
    while not any((move["expert"], move["to"]) == (expert, "disk") for move in service.moves[-1:]):
        if time.monotonic() > deadline:
            sys.exit(f"{expert} was not unloaded within {patience:g} s; artifacts/demo-server.log may say why")
        time.sleep(0.05)


def show_moves(moves: list[dict[str, Any]]) -> None:
    """Each kind of move: how often it was seen and how long it took, or that it was not seen."""
    seconds = defaultdict(list)
    for move in moves:
        seconds[f"{move['from']} -> {move['to']}"].append(move["seconds"])
    table = Table("move", "", "seen", "median", "slowest", title="what the tiers did", box=None)
    for kind, name in MOVES.items():
        taken = seconds[kind]
        figures = (f"{median(taken):.2f} s", f"{max(taken):.2f} s") if taken else ("", "")
        table.add_row(kind, name, str(len(taken)) if taken else "[red]not seen[/red]", *figures)
    console.print(table)
    wakes, starts = seconds["host -> device"], seconds["disk -> device"]
    if wakes and starts:
        console.print(
            f"Waking an expert from host RAM took {median(wakes):.2f} s, a cold start {median(starts):.1f} s: "
            f"{median(starts) / median(wakes):.0f} times as long."
        )


def compare(held_out: list[Asked], served: list[str]) -> dict[str, Any]:
    """The composition's exact match beside each served expert's recorded one, on the same questions."""
    scores = {name: score for name, score in single_expert_scores().items() if name in served}
    composition = sum(a.right for a in held_out) / len(held_out)
    active = active_params()
    mean_active = sum(active[a.expert] for a in held_out) / len(held_out)
    best = max(scores, key=lambda name: scores[name])
    table = Table("", "exact match", "active parameters", title=f"{len(held_out)} held-out questions", box=None)
    for name in sorted(scores, key=lambda name: scores[name]):
        table.add_row(name, f"{scores[name]:.1%}", f"{active[name] * 1000:.2f} M")
    table.add_row("[bold]the composition[/bold]", f"[bold]{composition:.1%}[/bold]", f"{mean_active * 1000:.2f} M mean")
    console.print(table)
    gain = composition - scores[best]
    console.print(f"{100 * gain:+.1f} points over the best single expert ({best}).")
    shares = Counter(a.expert for a in held_out)
    return {
        "composition": composition,
        "answered": [asdict(a) for a in held_out],
        "experts": scores,
        "gain_points": 100 * gain,
        "mean_active_params_b": mean_active,
        "share_of_traffic": {name: count / len(held_out) for name, count in shares.items()},
    }


def served_experts(config: Path) -> list[str]:
    """The names of a configuration's experts, adapters among them."""
    return [expert["name"] for expert in yaml.safe_load(config.read_text())["experts"]]


def single_expert_scores() -> dict[str, float]:
    scores = defaultdict(list)
    for row in read_rows("held_out.outcomes.jsonl") + read_rows("held_out.adapters.outcomes.jsonl"):
        scores[row["expert"]].append(row["score"])
    return {name: sum(values) / len(values) for name, values in scores.items()}


def active_params() -> dict[str, float]:
    """Active parameters of each expert in billions, as the router was told."""
    config = yaml.safe_load((ROOT / "configs/train-demo-adapters.yaml").read_text())
    return {expert["name"]: expert["active_params_b"] for expert in config["experts"]}


def by_category(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped = defaultdict(list)
    for row in rows:
        grouped[row["category"]].append(row)
    return grouped


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "demo/data" / name).read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
