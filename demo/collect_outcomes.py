"""Sends every prompt of the demo to every expert through the running service and records who was right.

    python demo/collect_outcomes.py

Writes demo/data/{train,held_out}.outcomes.jsonl: prompt_id, expert, score (exact match), output_tokens, answer.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from run import LONGEST_ANSWER_TOKENS, PATIENCE_SECONDS, ROOT, active_params, read_rows
from service import running_service

AT_ONCE = 32
console = Console()


def main() -> None:
    with running_service(ROOT / "configs/demo.yaml", "--names-only", console=console) as service:
        asyncio.run(collect(f"{service.url}/v1"))


async def collect(base_url: str) -> None:
    """Expert by expert, so that each is loaded once."""
    client = AsyncOpenAI(base_url=base_url, api_key="none", timeout=PATIENCE_SECONDS, max_retries=0)
    prompts = {split: read_rows(f"{split}.prompts.jsonl") for split in ("train", "held_out")}
    outcomes: dict[str, list[dict[str, Any]]] = {split: [] for split in prompts}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for expert in active_params():
            for split, rows in prompts.items():
                bar = progress.add_task(f"{expert}, {split}", total=len(rows))
                outcomes[split] += await answers_of(client, expert, rows, progress, bar)
    await client.close()
    for split, rows in outcomes.items():
        path = ROOT / "demo/data" / f"{split}.outcomes.jsonl"
        write_rows(path, rows)
        console.print(f"{path.relative_to(ROOT)}: {len(rows)} outcomes")


async def answers_of(
    client: AsyncOpenAI, expert: str, rows: list[dict[str, Any]], progress: Progress, bar: TaskID
) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(row: dict[str, Any]) -> dict[str, Any]:
        async with slots:
            answer = await client.chat.completions.create(
                model=expert,
                messages=[{"role": "user", "content": row["prompt"]}],
                max_tokens=LONGEST_ANSWER_TOKENS,
                temperature=0,
            )
        progress.advance(bar)
        text = answer.choices[0].message.content or ""
        return {
            "prompt_id": row["prompt_id"],
            "expert": expert,
            "score": float(text.strip() == row["answer"]),
            "output_tokens": answer.usage.completion_tokens if answer.usage else None,
            "answer": text,
        }

    return await asyncio.gather(*(one(row) for row in rows))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
