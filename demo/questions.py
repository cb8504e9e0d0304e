"""Questions and answers of five topics, seeded and split by meaning; writes the prompts the demo router learns from.

`python demo/questions.py --out demo/data` writes the files; `questions(topic, split, count)` makes them in memory.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Literal, get_args

from grammars import french, general, python, sql, units
from grammars.draft import Draft

Split = Literal["train", "choose", "router", "held_out"]

TOPICS: dict[str, Callable[[Random], Draft]] = {
    "french": french.draw,
    "python": python.draw,
    "units": units.draw,
    "sql": sql.draw,
    "general": general.draw,
}
CATEGORIES = {"general": "facts"}  # the router's name, where it differs: `general` is a name of its own
SPLITS: tuple[Split, ...] = get_args(Split)
SHARES = {"train": 64, "choose": 8, "router": 16, "held_out": 12}  # percent of the meanings
PROMPT_FILES: dict[Split, tuple[str, int]] = {
    "router": ("train.prompts.jsonl", 200),  # for the router's training: the experts were not trained on them
    "held_out": ("held_out.prompts.jsonl", 60),
}
DRAWS_PER_QUESTION = 40


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its only right answer; `group` is the topic and the phrasing family."""

    prompt_id: str
    prompt: str
    answer: str
    category: str
    group: str


def questions(topic: str, split: Split, count: int, seed: int = 0) -> list[Question]:
    """At most `count` questions with different prompts (fewer where the topic has no more); same seed, same list."""
    rng = Random(f"{seed}/{topic}/{split}")
    found: dict[str, Question] = {}
    for _ in range(DRAWS_PER_QUESTION * count):
        if len(found) == count:
            break
        draft = TOPICS[topic](rng)
        if split_of(topic, draft.key) == split and draft.prompt not in found:
            found[draft.prompt] = question(topic, split, len(found), draft)
    return list(found.values())


def question(topic: str, split: Split, number: int, draft: Draft) -> Question:
    """The draft with its id."""
    return Question(
        prompt_id=f"{topic}-{split}-{number:05d}",
        prompt=draft.prompt,
        answer=draft.answer,
        category=CATEGORIES.get(topic, topic),
        group=f"{topic}/{draft.family}",
    )


def split_of(topic: str, key: str) -> Split:
    """The one split that may hold this meaning, whatever the seed."""
    percent = int.from_bytes(sha256(f"{topic}/{key}".encode()).digest()[:8], "big") % 100
    for split in SPLITS:
        percent -= SHARES[split]
        if percent < 0:
            return split
    raise AssertionError("the shares sum to 100")


def write_prompts(out: Path) -> list[Path]:
    """Writes the router's training prompts and the held-out prompts, one JSON object a line; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for split, (name, per_topic) in PROMPT_FILES.items():
        rows = [asdict(row) for topic in TOPICS for row in questions(topic, split, per_topic)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (out / name).write_text("".join(lines), encoding="utf-8")
        paths.append(out / name)
    return paths


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    for path in write_prompts(parser.parse_args().out):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
