"""Probes of a new artifact (held-out prompts routed correctly and confidently), and new experts in an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from coe_server.errors import ConfigError, DatasetError, NoCapableExpert
from coe_server.routing.artifact import Artifact, HeldOut
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.manifest import ExpertEntry
from coe_server.routing.probes import Probe, ProbeResult, read_probes, run_probe, shown, write_probes
from coe_server.routing.router import Router
from coe_server.routing.scoring import Scorer
from coe_server.system.visible import visible
from router_training import Track
from router_training.assignment.objectives import lower_bounds, score_entries, score_table, shares_of
from router_training.config import MappingSettings
from router_training.data.dataset import Dataset

LONGEST_PROMPT = 400
LOOKED_AT = 3000  # held-out prompts


@dataclass(frozen=True, slots=True)
class _Sure:
    """A prompt that the router classifies correctly."""

    text: str
    category: str
    confidence: float


def chosen_probes(router: Router, held_out: Dataset, per_category: int) -> list[Probe]:
    """The most confident correct prompts of every category, with the router's experts for them."""
    away = dict.fromkeys(router.expert_names, Availability("disk", 0.0))
    options = RouteOptions(objective=router.objectives[0])
    found: dict[str, list[_Sure]] = {}
    for label, conversation in list(zip(held_out.labels.tolist(), held_out.conversations, strict=True))[:LOOKED_AT]:
        text = conversation.turns[-1].text
        if label < 0 or len(conversation.turns) > 1 or not 0 < len(text.strip()) <= LONGEST_PROMPT:
            continue
        category = held_out.categories[label]
        try:
            decision = router.route(conversation, options, away)
        except NoCapableExpert:  # its experts are unused, or banned from the prompt's category
            continue
        if decision.category == category and decision.confidence is not None:
            found.setdefault(category, []).append(_Sure(text, category, decision.confidence))
    surest = [sorted(sure, key=lambda one: -one.confidence)[:per_category] for _, sure in sorted(found.items())]
    return [with_experts(router, Probe(prompt=one.text, category=one.category)) for some in surest for one in some]


def with_experts(router: Router, probe: Probe) -> Probe:
    """The probe with this router's expert under every objective served."""
    asked = probe.model_copy(update={"experts": dict.fromkeys(router.objectives, router.expert_names[0])})
    return probe.model_copy(update={"experts": run_probe(router, asked).experts})


def write_own_and_chosen(folder: Path, own: Sequence[Probe], held_out: Dataset | None, per_category: int) -> None:
    """The probes of a new artifact: the user's, and (with `held_out`) chosen ones.

    None if prompts must be embedded before routing, or if no objective is served.
    """
    router = Router.load(folder)
    chosen: list[Probe] = []
    embedded = router.artifact.manifest.features.embedded_before_routing
    if held_out is not None and per_category > 0 and router.objectives and not embedded:
        chosen = chosen_probes(router, held_out, per_category)
    write_probes(folder, [*own, *chosen])


def carry_over(before: Path, folder: Path) -> None:
    """The probes of another artifact, with this artifact's experts for them."""
    router = Router.load(folder)
    embedded = router.artifact.manifest.features.embedded_before_routing
    probes = read_probes(before)
    write_probes(folder, probes if embedded else [with_experts(router, probe) for probe in probes])


def print_results(results: Sequence[ProbeResult]) -> None:
    """One line for each probe."""
    table = Table("", "prompt", "category", "experts", "what is wrong")
    for result in results:
        experts = ", ".join(f"{objective}: {expert}" for objective, expert in result.experts.items())
        mark = "fails" if result.failures else "ok"
        wrong = visible("; ".join(result.failures))
        table.add_row(mark, shown(result.probe.prompt), visible(result.category or "-"), experts, wrong)
    Console().print(table, markup=False, emoji=False)


def with_new_experts(
    artifact: Artifact, new_experts: Sequence[ExpertEntry], dataset: Dataset | None, track: Track
) -> Artifact:
    """The artifact with these experts in its score table; objectives, front and step one stay as they are.

    Raises ConfigError for a name that it has already, DatasetError for an expert without outcomes.
    """
    if not new_experts:
        return artifact
    assert dataset is not None, "a new expert needs its outcomes"
    names = [expert.name for expert in new_experts]
    for name in names:
        if name in artifact.expert_names or names.count(name) > 1:
            raise ConfigError(f"expert {name} is in the artifact already")
    columns = [dataset.experts.index(name) for name in names]
    for name, column in zip(names, columns, strict=True):
        if np.isnan(dataset.scores[:, column]).all():
            raise DatasetError(f"expert {name} has no outcome for any of the {len(dataset)} prompts")
    known = ~np.isnan(dataset.scores[:, columns]).all(axis=1)
    heard = dataset.rows(np.flatnonzero(known))
    probabilities = _predicted_probabilities(artifact, heard, track)
    shares = shares_of(_labels_in(artifact, heard), probabilities)
    table = score_table(shares, heard.scores[:, columns], heard.weights, MappingSettings().shrinkage_prompts)
    table = lower_bounds(table, artifact.manifest.z) if artifact.manifest.z else table
    manifest = artifact.manifest
    asked = replace(heard, experts=tuple(names), categories=tuple(manifest.categories))
    by_category, overall = score_entries(asked, table)
    update = {
        "experts": [*manifest.experts, *new_experts],
        "score": {category: {**row, **by_category[category]} for category, row in manifest.score.items()},
        "overall": {**manifest.overall, **overall},
    }
    corrections = artifact.corrections
    if corrections is not None:
        corrections = replace(corrections, coefficients=_with_zeros(corrections.coefficients, len(new_experts)))
    return replace(artifact, manifest=manifest.model_copy(update=update), corrections=corrections)


def _labels_in(artifact: Artifact, dataset: Dataset) -> npt.NDArray[np.int64]:
    """[n]: each prompt's category in the artifact's order; -1 without one, or for one that the artifact lacks."""
    number = {name: row for row, name in enumerate(artifact.manifest.categories)}
    rows = np.array([*(number.get(name, -1) for name in dataset.categories), -1])
    return np.asarray(rows[dataset.labels])


def held_out_with(held_out: HeldOut, new_experts: int) -> HeldOut:
    """The out-of-fold predictions with zero columns for this many new experts."""
    return replace(held_out, corrections=_with_zeros(held_out.corrections, new_experts)) if new_experts else held_out


def _with_zeros(columns: npt.NDArray[np.float32], more: int) -> npt.NDArray[np.float32]:
    """New experts have no corrections: no data relates their scores to a prompt's words."""
    return np.hstack((columns, np.zeros((len(columns), more), dtype=np.float32)))


def _predicted_probabilities(artifact: Artifact, dataset: Dataset, track: Track) -> npt.NDArray[np.float64]:
    """[n, categories]: the probabilities of the artifact's step one."""
    scorer = Scorer(artifact)
    conversations = track(dataset.conversations, "reading the new expert's prompts")
    return np.array([scorer.score(one.turns, min_confidence=None).probabilities for one in conversations])
