"""Made-up outcomes for tests: topics with distinct words, a specialist for each, and a generalist."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

WORDS = {
    "french": ["bonjour", "merci", "maison", "chien", "chat", "pomme", "rouge", "livre"],
    "python": ["list", "dict", "lambda", "def", "sort", "print", "loop", "string"],
    "units": ["km", "metre", "gram", "litre", "inch", "foot", "mile", "pound"],
    "generic": ["weather", "story", "capital", "name", "colour", "who", "when", "holiday"],
}
ID_PREFIX = {"generic": "general"}  # the ids decide which prompts are held out
SPECIALIST = {"french": "fr", "python": "py", "units": "un", "generic": "gen"}
SIZES = {"fr": 0.0007, "py": 0.0007, "un": 0.0007, "gen": 0.0025}


def prompts(per_category: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with an obvious category; each group has prompts of several categories."""
    draw = random.Random(seed)
    return [
        {
            "prompt_id": f"{ID_PREFIX.get(category, category)}-{seed}-{number}",
            "prompt": " ".join(draw.choices(words, k=4)) + f" {draw.randint(0, 99)}",
            "category": category,
            "group": f"set-{number % 4}",
            "answer": "ignored",
        }
        for category, words in WORDS.items()
        for number in range(per_category)
    ]


def outcomes(rows: Iterable[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """A specialist is right on 19 of 20 prompts of its topic and on few others, the generalist on half of all."""
    draw = random.Random(seed)
    recorded = []
    for row in rows:
        for expert in SIZES:
            at_home = SPECIALIST[row["category"]] == expert
            chance = 0.95 if at_home else 0.5 if expert == "gen" else 0.03
            recorded.append({"prompt_id": row["prompt_id"], "expert": expert, "score": float(draw.random() < chance)})
    return recorded


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_run(folder: Path, per_category: int = 60, **changes: Any) -> Path:
    """A folder with prompts, outcomes and a config; `changes` replace top-level keys of the config."""
    rows = prompts(per_category)
    write_jsonl(folder / "prompts.jsonl", rows)
    write_jsonl(folder / "outcomes.jsonl", outcomes(rows))
    config = {
        "data": {"prompts": ["prompts.jsonl"], "outcomes": ["outcomes.jsonl"]},
        "experts": [{"name": name, "active_params_b": size} for name, size in SIZES.items()],
        "objectives": {"quality": {}, "cheap": {"active_params_b": 0.0009}},
        "features": {"bucket_bits": 15},
        "classifier": {"folds": 3},
        "shipping": {"resamples": 200},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}, sort_keys=False), encoding="utf-8")
    return path
