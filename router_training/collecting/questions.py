"""Prompts as they are sent: messages, and the row they came from. Knows nothing of experts or scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe_server.errors import DatasetError
from router_training.data.dataset import read_rows

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt: `messages` as an OpenAI endpoint takes them; `row` with every column of its file."""

    prompt_id: str
    messages: tuple[Message, ...]
    row: Mapping[str, Any]
    place: str

    @property
    def text(self) -> str:
        """The words a reader sees: a single prompt as it is, a conversation turn by turn."""
        if len(self.messages) == 1:
            return _words(self.messages[0])
        return "\n\n".join(f"[{message.get('role')}]\n{_words(message)}" for message in self.messages)


def read_questions(paths: Sequence[Path]) -> tuple[Question, ...]:
    """All prompts of the files, in order. Raises DatasetError naming file and row."""
    questions = tuple(_question(f"{path}, row {number}", row) for path in paths for number, row in read_rows(path))
    if not questions:
        raise DatasetError(f"{', '.join(str(path) for path in paths)}: no rows")
    seen: set[str] = set()
    for question in questions:
        if question.prompt_id in seen:
            raise DatasetError(f"{question.place}: prompt_id {question.prompt_id!r} occurs twice")
        seen.add(question.prompt_id)
    return questions


def fingerprint(*parts: object) -> str:
    """The same for the same parts, in this run and the next: tells whether something was asked already."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _question(place: str, row: Mapping[str, Any]) -> Question:
    prompt_id = row.get("prompt_id")
    if prompt_id is None or prompt_id == "":
        raise DatasetError(f"{place} has no 'prompt_id'")
    messages = row.get("messages")
    if isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    usable = isinstance(messages, list) and messages and all(isinstance(message, Mapping) for message in messages)
    if not usable:
        raise DatasetError(f"{place} has neither a text 'prompt' nor a list of 'messages'")
    return Question(str(prompt_id), tuple(_without_nulls(message) for message in messages), row, place)  # type: ignore[union-attr]  # `usable` is false for None


def _without_nulls(value: Any) -> Any:
    """Parquet gives every message and every part of one each key that any other has."""
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value


def _words(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in parts if isinstance(part, Mapping))
