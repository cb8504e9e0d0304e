"""What a load asks: prompts from a file, one a line, or made up. Knows nothing of how they are sent."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coe_server.errors import ConfigError

Messages = list[Mapping[str, Any]]

MADE_UP = (
    "What is {a} plus {b}?",
    "Write a function that returns every {a}th element of a list.",
    "Name {a} rivers that flow into the sea.",
    "How many minutes are {a} hours and {b} minutes?",
    "Translate into French: I have {a} apples and {b} pears.",
)


def made_up_questions(count: int, seed: int = 0) -> list[Messages]:
    """Questions nobody wrote, the same for the same seed."""
    chance = random.Random(seed)
    return [
        _asked(chance.choice(MADE_UP).format(a=chance.randint(2, 99), b=chance.randint(2, 99))) for _ in range(count)
    ]


def read_questions(file: Path) -> list[Messages]:
    """`prompt` or `messages` of each JSON line; in a file that is not .jsonl any other line is a prompt itself.

    Raises ConfigError naming file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts: {file} is not text in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"--prompts: {file} cannot be read ({error.strerror})") from error
    questions = [_question(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise ConfigError(f"--prompts: {file} is empty")
    return questions


def _question(file: Path, number: int, line: str) -> Messages:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        if file.suffix == ".jsonl":
            raise ConfigError(f"--prompts: {file}, line {number} is not a JSON object")
        return _asked(line)
    if isinstance(entry.get("prompt"), str):
        return _asked(entry["prompt"])
    messages = entry.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        return messages
    raise ConfigError(f"--prompts: {file}, line {number} has neither a text 'prompt' nor a list of 'messages'")


def _asked(prompt: str) -> Messages:
    return [{"role": "user", "content": prompt}]
