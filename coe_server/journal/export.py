"""The journal as files that training reads: ratings always, prompts and outcomes where texts were kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe_server.errors import ConfigError
from coe_server.journal.entries import Kept
from coe_server.journal.store import Store
from coe_server.private_files import private_folder, replacing

FEEDBACK, PROMPTS, OUTCOMES = "feedback.jsonl", "prompts.jsonl", "outcomes.jsonl"


@dataclass(frozen=True, slots=True)
class Exported:
    """How many lines are in each file."""

    feedback: int
    rated: int
    prompts: int
    outcomes: int


def export(journal: Path, folder: Path) -> Exported:
    """Writes the three files, for their owner alone, into `folder`. A server may go on writing. Raises ConfigError."""
    if not journal.is_file():
        raise ConfigError(f"{journal}: there is no decision log; a server with log.decisions: true writes one")
    store = Store(journal)
    try:
        kept = list(store.everything())
    finally:
        store.close()
    private_folder(folder)
    feedback = [line for one in kept if (line := _feedback(one)) is not None]
    texts = [one for one in kept if one.messages]
    prompts = [{"prompt_id": one.decision["decision_id"], "messages": one.messages} for one in texts]
    outcomes = [_outcome(one) for one in texts if one.score is not None]
    for name, lines in ((FEEDBACK, feedback), (PROMPTS, prompts), (OUTCOMES, outcomes)):
        with replacing(folder / name) as out:
            out.writelines(_as_lines(lines))
    rated = sum(line["score"] is not None for line in feedback)
    return Exported(len(feedback), rated, len(prompts), len(outcomes))


def _feedback(one: Kept) -> dict[str, Any] | None:
    """None for an expert that was asked for by name: nobody chose, and nothing was expected.

    A decision is `inside` where its category was believed: elsewhere the experts' overall means decided.
    """
    decision = one.decision
    probabilities: Mapping[str, float] = decision["probabilities"]
    if not probabilities:
        return None
    return {
        "decision_id": decision["decision_id"],
        "router_version": decision["router_version"],
        "expert": decision["expert"],
        "inside": decision["category"] == max(probabilities, key=lambda name: probabilities[name]),
        "probabilities": probabilities,
        "expected_score": decision["ranking"][0]["expected_score"],
        "score": one.score,
        "tokens": one.tokens,
    }


def _outcome(one: Kept) -> dict[str, Any]:
    """In the words of `coe-train collect`: what an answer took is what was written of it."""
    return {
        "prompt_id": one.decision["decision_id"],
        "expert": one.decision["expert"],
        "score": one.score,
        "output_tokens": (one.tokens or {}).get("completion"),
    }


def _as_lines(values: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(value, ensure_ascii=True) + "\n" for value in values)
