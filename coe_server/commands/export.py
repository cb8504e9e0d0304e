"""`coe journal export`: the decision log as files for coe-train."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from coe_server.build.service import journal_file
from coe_server.commands.terminal import ConfigPath, mistakes_as_sentences
from coe_server.config.schema import load_config
from coe_server.errors import ConfigError
from coe_server.journal.entries import Kept
from coe_server.journal.store import Store
from coe_server.system.files import private_folder, replacing, require_writable_folder


def export(
    config: ConfigPath,
    out: Annotated[Path, typer.Option(help="Folder for the files; those of an earlier export are replaced.")],
) -> None:
    """Export the decision log for coe-train. The server may be running.

    feedback.jsonl: every routed decision with its rating, for `coe-train map ARTIFACT --feedback`. prompts.jsonl and
    outcomes.jsonl: kept prompts (log.prompts: true) and their ratings as outcomes, for `coe-train fit`.

    Example: coe journal export serve.yaml --out journal
    """
    with mistakes_as_sentences():
        require_writable_folder("--out", out)
        found = export_journal(journal_file(load_config(config)), out)
    Console().print(
        f"{found.feedback} decisions, {found.rated} of them rated; {found.prompts} prompts, {found.outcomes} outcomes"
        f" -> {out}",
        soft_wrap=True,
    )


FEEDBACK, PROMPTS, OUTCOMES = "feedback.jsonl", "prompts.jsonl", "outcomes.jsonl"


@dataclass(frozen=True, slots=True)
class Exported:
    """The number of lines in each file."""

    feedback: int
    rated: int
    prompts: int
    outcomes: int


def export_journal(journal: Path, folder: Path) -> Exported:
    """Write the three files into `folder`, readable by their owner only. Raises ConfigError.

    The server may be running.
    """
    if not journal.is_file():
        raise ConfigError(f"{journal}: there is no decision log; a server with log.decisions: true writes one")
    store = Store(journal)
    try:
        kept = list(store.decisions.everything())
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
    """The line for `coe-train map`; None for an expert requested by name, since nothing was chosen or predicted.

    `inside`: True if the predicted category was used; otherwise the experts' overall means decided.
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
        "ratings": one.ratings,
        "tokens": one.tokens,
        "exploration": decision.get("exploration"),
        "shadow": decision.get("shadow"),
        "compared": one.compared,
    }


def _outcome(one: Kept) -> dict[str, Any]:
    """An outcome in the format of `coe-train collect`; `output_tokens` are the completion tokens."""
    return {
        "prompt_id": one.decision["decision_id"],
        "expert": one.decision["expert"],
        "score": one.score,
        "output_tokens": (one.tokens or {}).get("completion"),
    }


def _as_lines(values: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(value, ensure_ascii=True) + "\n" for value in values)
