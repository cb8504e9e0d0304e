"""Any number of prompts that resemble a given few, with outcomes: one Markov chain of words for each category.

Each next word is drawn from those that follow the last one in the category's prompts. So n-grams are as frequent as in
real text, and near-duplicates are rare. A prompt takes its length, group and outcomes from one of the given ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

MISSPELT = 0.02  # share of words with two letters exchanged: in large sets new words never end


@dataclass(frozen=True, slots=True)
class Given:
    """A prompt as recorded; `scores` by expert."""

    text: str
    category: str
    group: str
    scores: dict[str, float]


class Chain:
    """Which words follow each word in the texts of one category."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._followers: dict[str, list[str]] = {}
        self._first: list[str] = []
        for words in (text.split() for text in texts):
            self._first += words[:1]
            for word, follower in pairwise(words):
                self._followers.setdefault(word, []).append(follower)

    def text(self, words: int, draw: random.Random) -> str:
        """A text of this many words."""
        drawn = [draw.choice(self._first)]
        while len(drawn) < words:
            followers = self._followers.get(drawn[-1])
            drawn.append(draw.choice(followers or self._first))
        return " ".join(_misspelt(word, draw) if draw.random() < MISSPELT else word for word in drawn)


def write_made_up(given: Sequence[Given], count: int, folder: Path, seed: int) -> tuple[Path, Path]:
    """`count` prompts and their outcomes as JSONL in `folder`: (prompts, outcomes)."""
    prompts, outcomes = folder / "prompts.jsonl", folder / "outcomes.jsonl"
    with prompts.open("w", encoding="utf-8") as texts, outcomes.open("w", encoding="utf-8") as scores:
        for number, (one, text) in enumerate(_made_up(given, count, random.Random(seed))):
            name = f"p{number}"
            row = {"prompt_id": name, "prompt": text, "category": one.category, "group": one.group}
            texts.write(json.dumps(row, ensure_ascii=False) + "\n")
            for expert, score in one.scores.items():
                scores.write(json.dumps({"prompt_id": name, "expert": expert, "score": score}) + "\n")
    return prompts, outcomes


def _made_up(given: Sequence[Given], count: int, draw: random.Random) -> Iterator[tuple[Given, str]]:
    by_category: dict[str, list[str]] = {}
    for one in given:
        by_category.setdefault(one.category, []).append(one.text)
    chains = {category: Chain(texts) for category, texts in by_category.items()}
    for _ in range(count):
        one = draw.choice(given)
        yield one, chains[one.category].text(max(1, len(one.text.split())), draw)


def _misspelt(word: str, draw: random.Random) -> str:
    if len(word) < 2:
        return word
    at = draw.randrange(len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
