"""A new expert in an artifact: its scores per category, from its outcomes and the artifact's own step one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from coe_server.errors import ConfigError, DatasetError
from coe_server.routing.artifact import Artifact, HeldOut
from coe_server.routing.manifest import ExpertEntry
from router_training.config import MappingSettings
from router_training.data.dataset import Dataset
from router_training.drafting.objectives import score_entries
from router_training.evaluating.evaluation import predicted_probabilities
from router_training.progress import Track
from router_training.step_two.bounds import lower_bounds
from router_training.step_two.scores import score_table


def with_newcomers(
    artifact: Artifact, newcomers: Sequence[ExpertEntry], dataset: Dataset | None, track: Track
) -> Artifact:
    """The artifact with these experts in its score table; objectives, front and step one stay as they are.

    Raises ConfigError for a name that it has already, DatasetError for an expert without outcomes.
    """
    if not newcomers:
        return artifact
    assert dataset is not None, "a new expert comes with its outcomes"
    names = [expert.name for expert in newcomers]
    for name in names:
        if name in artifact.expert_names or names.count(name) > 1:
            raise ConfigError(f"expert {name} is in the artifact already")
    columns = [dataset.experts.index(name) for name in names]
    for name, column in zip(names, columns, strict=True):
        if np.isnan(dataset.scores[:, column]).all():
            raise DatasetError(f"expert {name} has no outcome for any of the {len(dataset)} prompts")
    known = ~np.isnan(dataset.scores[:, columns]).all(axis=1)
    heard = dataset.rows(np.flatnonzero(known))
    probabilities = predicted_probabilities(artifact, heard, track)
    table = score_table(probabilities, heard.scores[:, columns], heard.weights, MappingSettings().shrinkage_prompts)
    table = lower_bounds(table, artifact.manifest.z) if artifact.manifest.z else table
    manifest = artifact.manifest
    asked = replace(heard, experts=tuple(names), categories=tuple(manifest.categories))
    by_category, overall = score_entries(asked, table)
    update = {
        "experts": [*manifest.experts, *newcomers],
        "score": {category: {**row, **by_category[category]} for category, row in manifest.score.items()},
        "overall": {**manifest.overall, **overall},
    }
    corrections = artifact.corrections
    if corrections is not None:
        corrections = replace(corrections, coefficients=_with_zeros(corrections.coefficients, len(newcomers)))
    return replace(artifact, manifest=manifest.model_copy(update=update), corrections=corrections)


def held_out_with(held_out: HeldOut, newcomers: int) -> HeldOut:
    """The out-of-fold predictions with room for so many more experts."""
    return replace(held_out, corrections=_with_zeros(held_out.corrections, newcomers)) if newcomers else held_out


def _with_zeros(columns: npt.NDArray[np.float32], more: int) -> npt.NDArray[np.float32]:
    """Nothing is known of how a new expert's score goes with a prompt's own words."""
    return np.hstack((columns, np.zeros((len(columns), more), dtype=np.float32)))
