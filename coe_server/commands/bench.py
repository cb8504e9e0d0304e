"""`coe bench`: the load that `load.py` sends, as a command with a bar, a table and JSON."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from coe_server.commands.load import Measured, Plan, made_up_questions, read_questions, send_load
from coe_server.commands.terminal import bearer, mistakes_as_sentences, tell
from coe_server.errors import ConfigError
from coe_server.system.visible import visible

CHAT = "/chat/completions"
CONCURRENCY, REQUESTS = 8, 100  # defaults


def bench(
    url: Annotated[str, typer.Argument(metavar="URL", help="An OpenAI endpoint, e.g. http://127.0.0.1:8080/v1")],
    model: Annotated[str, typer.Option(help="Value of model: auto, auto:OBJECTIVE or a name.")] = "auto",
    concurrency: Annotated[int | None, typer.Option(help="Requests in flight. Default 8.", min=1)] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second, however many are in flight; replaces --concurrency.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Stop after this many requests. Default 100 without --duration.", min=1)
    ] = None,
    duration: Annotated[float | None, typer.Option(help="Stop sending after this many seconds.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with prompt or messages, or one prompt a line. Default: made up.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="max_tokens of each request.", min=1)] = 64,
    key: Annotated[str | None, typer.Option(envvar="COE_API_KEY", help="API key.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """Send streamed chat requests to any OpenAI endpoint and print throughput, time to first token and errors.

    Examples:

      coe bench http://127.0.0.1:8080/v1 --concurrency 32 --duration 30

      coe bench http://127.0.0.1:8000/v1 --model my-model --rate 5 --requests 200 --prompts questions.jsonl

    A token is a chunk with content or reasoning. Only complete answers are timed; errors are counted by code.
    Exit code 1 if no answer was complete.
    """
    with mistakes_as_sentences():
        if rate is not None and concurrency is not None:
            raise ConfigError("--rate and --concurrency exclude each other; give one of them")
        plan = Plan(
            url=_chat_url(url),
            model=model,
            questions=read_questions(prompts) if prompts is not None else made_up_questions(100),
            concurrency=concurrency or CONCURRENCY,
            rate=_above_zero("--rate", rate),
            requests=REQUESTS if requests is None and duration is None else requests,
            seconds=_above_zero("--duration", duration),
            max_tokens=max_tokens,
            headers=bearer("--key", key),
        )
    found = _run(plan, shown=not as_json).as_json()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _print(found)
    if not found["answered"]:
        if not urlsplit(url).path.strip("/"):
            tell(f"URL: '{url}' has no path; most servers have OpenAI's API at /v1")
        raise typer.Exit(1)


def _run(plan: Plan, shown: bool) -> Measured:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task("requests", total=plan.requests)
        return asyncio.run(send_load(plan, lambda _: bar.advance(task)))


def _print(found: dict[str, Any]) -> None:
    console = Console(soft_wrap=True)
    console.print(visible(_headline(found)), highlight=False, markup=False)
    if found["answered"]:
        console.print(_table(found))


def _table(found: dict[str, Any]) -> Table:
    table = Table("", "p50", "p90", "p99", "max")
    rows = {"first token": "first_token_ms", "between tokens": "per_token_ms", "whole answer": "answer_ms"}
    for name, figure in rows.items():
        times = found[figure] or {}
        table.add_row(f"{name}, ms", *(f"{times[p]:,.1f}" if p in times else "-" for p in ("p50", "p90", "p99", "max")))
    return table


def _headline(found: dict[str, Any]) -> str:
    errors = ", ".join(f"{count} x {code}" for code, count in found["errors"].items()) or "none"
    return (
        f"{found['answered']} of {found['requests']} answered in {found['seconds']:,.1f} s: "
        f"{found['requests_per_second']:,} requests/s, {found['tokens_per_second']:,} tokens/s; errors: {errors}"
    )


def _chat_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"URL: '{url}' does not start with http:// or https://")
    return url.rstrip("/").removesuffix(CHAT) + CHAT


def _above_zero(option: str, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{option}: {value} is not a number above 0")
    return value
