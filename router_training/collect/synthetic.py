"""`coe-train prompts`: an expert writes prompts like the examples of each route.

They are marked `synthetic` with the expert's name: training uses them, measuring does not. Near-duplicates are dropped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from coe_server.config.routes import DEFAULT_ROUTE, RoutesFile
from coe_server.errors import DatasetError
from coe_server.routing.features import normalised, word_hashes
from coe_server.system.files import replacing, require_writable_file
from coe_server.system.visible import visible
from router_training.collect.bars import Bars
from router_training.collect.endpoint import Endpoint, Refusal
from router_training.collect.faults import is_refusal
from router_training.data.near_duplicates import LEAST_RESEMBLANCE, resemblance

AT_ONCE = 20  # prompts asked for in one request
SHOWN_EXAMPLES = 10
MOST_ROUNDS = 3  # requests for each AT_ONCE prompts wanted
LONGEST_PROMPT = 2_000  # characters
OPTIONS: Mapping[str, Any] = {"temperature": 1.0, "max_tokens": 2048}

Words = npt.NDArray[np.uint32]
FENCE = "```"
_MARK = re.compile(r"\A\s*(?:[-*\u2022]|\d{1,3}[.):])\s+")
_DECODER = json.JSONDecoder(strict=False)
_LIST = re.compile(r'^[ \t]*(?:(?:\{\s*"\w+"\s*:\s*)?\[\s*(?=["{])|(?=\{\s*"))', re.MULTILINE)  # up to its first entry
_BETWEEN = re.compile(r"[\s,]+")
_AFTER = re.compile(r'[\]}\s`]*$|["{]', re.MULTILINE)  # its end, or an entry that is cut off


@dataclass(slots=True)
class Written:
    """The prompts of one category, and how many lines were near-duplicates, and how many requests failed."""

    category: str
    prompts: list[str]
    duplicates: int = 0
    failures: int = 0
    complaint: str | None = None


def write_prompts(routes: RoutesFile, endpoint: Endpoint, per_category: int, out: Path, bars: Bars) -> list[Written]:
    """Write a prompts file with up to `per_category` prompts for each route with examples.

    Raises DatasetError if the expert writes none.
    """
    require_writable_file("--out", out)
    if out.suffix != ".jsonl":
        raise DatasetError(f"--out: {out}: unsupported file type; use .jsonl")
    written = asyncio.run(_ask(routes, endpoint, per_category, bars))
    if not any(one.prompts for one in written):
        why = next((one.complaint for one in written if one.complaint), "its answers hold no prompt, one a line")
        raise DatasetError(f"{endpoint.model} wrote no prompt: {why}")
    with replacing(out) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(written, endpoint.model))
    return written


def rows_of(written: Sequence[Written], expert: str) -> list[dict[str, str]]:
    """The rows of a prompts file."""
    return [
        {
            "prompt_id": f"synthetic-{one.category}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}",
            "prompt": prompt,
            "category": one.category,
            "group": f"synthetic-{expert}",
            "synthetic": expert,
        }
        for one in written
        for prompt in one.prompts
    ]


async def _ask(routes: RoutesFile, endpoint: Endpoint, per_category: int, bars: Bars) -> list[Written]:
    targets = {name: target for name, target in routes.targets.items() if target.texts}
    most = MOST_ROUNDS * -(-per_category // AT_ONCE)
    bars.plan(dict.fromkeys(targets, most))
    taken = [_words(text) for target in targets.values() for text in target.texts]  # of every route: overlaps confuse
    written = []
    async with endpoint:
        for name, target in targets.items():
            one = Written(name, [])
            for number in range(most):
                missing = per_category - len(one.prompts)
                if missing <= 0:
                    break
                asked = request(name, target.description, target.examples, min(missing, AT_ONCE), number)
                reply = await endpoint.ask([{"role": "user", "content": asked}])
                bars.advance(name)
                if isinstance(reply, Refusal):
                    one.failures, one.complaint = one.failures + 1, reply.reason
                    if reply.hopeless:
                        break
                else:
                    _keep(prompts_in(reply.completion.text), one, taken, per_category)
            written.append(one)
    return written


def request(name: str, description: str | None, examples: Sequence[str], count: int, number: int) -> str:
    """The text that asks for prompts; `number` shows other examples in each request."""
    kind = f"the kind '{name}'" if name != DEFAULT_ROUTE else "no special kind: everyday questions and requests"
    about = f" ({description})" if description else ""
    first = (number * SHOWN_EXAMPLES) % max(1, len(examples))
    shown = [*examples[first:], *examples[:first]][:SHOWN_EXAMPLES]
    listed = "".join(f"- {' '.join(one.split())}\n" for one in shown)
    return (
        f"Write {count} different prompts that users could send to an assistant. All are of {kind}{about}.\n"
        f"{'Examples:' if shown else ''}\n{listed}"
        "Vary topic, length and wording; do not repeat the examples. One prompt a line, without numbers, without"
        " answers, and nothing else."
    )


def prompts_in(text: str) -> list[str]:
    """The prompts of an answer: of its list in JSON, else its lines without list marks and quotation marks."""
    if is_refusal(text):
        return []
    lines = (_MARK.sub("", line).strip().strip('"\u201c\u201d').strip() for line in text.splitlines())
    found = _listed(text) or [line for line in lines if not line.endswith(":") and not line.startswith(FENCE)]
    return [one for one in found if one and len(one) <= LONGEST_PROMPT]


def _listed(text: str) -> list[str]:
    """The strings of a list in JSON, or the `prompt` of its objects; the list may be cut off. Empty without one."""
    start = _LIST.search(text)
    place = start.end() if start else len(text)
    found: list[Any] = []
    while place < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            break
        found.append(value.get("prompt") if isinstance(value, dict) else value)
        between = _BETWEEN.match(text, place)
        place = place if between is None else between.end()
    if not _AFTER.match(text, place):
        return []
    return [one.strip() for one in found if isinstance(one, str)]


def _keep(prompts: Sequence[str], one: Written, taken: list[Words], most: int) -> None:
    """Add prompts that are no near-duplicate of an example or of an earlier prompt."""
    for prompt in prompts:
        if len(one.prompts) == most:
            return
        words = _words(prompt)
        if not len(words) or any(resemblance(words, other) >= LEAST_RESEMBLANCE for other in taken):
            one.duplicates += 1
            continue
        taken.append(words)
        one.prompts.append(prompt)


def show_written(written: Sequence[Written], per_category: int, out: Path, console: Console) -> bool:
    """Print what was written; True if each category has as many prompts as asked for."""
    table = Table("category", "prompts", "near-duplicates dropped", "failed requests")
    for one in written:
        table.add_row(visible(one.category), str(len(one.prompts)), str(one.duplicates), str(one.failures))
    console.print(table)
    for one in written:
        if len(one.prompts) < per_category:
            why = f": {one.complaint}" if one.complaint else ""
            console.print(visible(f"{one.category}: fewer than the {per_category} asked for{why}"), markup=False)
    console.print(
        f"{sum(len(one.prompts) for one in written)} prompts, marked synthetic -> {out}; read some before use",
        markup=False,
    )
    return all(len(one.prompts) >= per_category for one in written)


def _words(text: str) -> Words:
    return np.unique(word_hashes(normalised(text)))
