"""Whether handing over is earned: on folds, on groups left out of training, and on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.certainty import Handover, judged_tokens
from coe_server.routing.manifest import CurveEntry, HandoverEntry, InsteadEntry, Manifest
from router_training.assignment.objectives import decided, permitted
from router_training.classifier.certainty import curve_entries, fitted_instead
from router_training.classifier.classifier import group_folds
from router_training.cross_fit.draft import Learned
from router_training.cross_fit.groups import GROUP_FOLDS
from router_training.cross_fit.out_of_fold import grounds_of
from router_training.data.dataset import Dataset
from router_training.data.split import Fold
from router_training.evaluation.gains import UnseenGroups
from router_training.evaluation.handover import (
    NEVER,
    HandoverGain,
    Stage,
    best_handover,
    by_rule,
    cross_played,
    gain_of,
)
from router_training.evaluation.metrics import Bootstrap

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class HandoverEvidence:
    """One objective: the gain on folds, and on groups left out of training (None without groups)."""

    inside: HandoverGain
    outside: HandoverGain | None

    def as_json(self) -> dict[str, Any]:
        return {
            "cross_validated": self.inside.as_json(),
            "leave_group_out": self.outside and self.outside.as_json(),
        }


def with_handover(
    learned: Learned, unseen: UnseenGroups | None, bootstrap: Bootstrap, harm_limit: float
) -> tuple[Learned, dict[str, HandoverEvidence]]:
    """The draft with every expert's certainty and each objective's handover, and the evidence for it.

    Unchanged, without evidence, where no log-probabilities were recorded.
    """
    predictions, prompts, config = learned.predictions, learned.predicted, learned.config
    if prompts.said is None or not prompts.said.recorded.any():
        return learned, {}
    is_known = _differs(predictions.expected, predictions.table.overall_scores)
    expected = np.where(is_known[:, np.newaxis], predictions.expected, np.nan)
    certainty = curve_entries(prompts, expected, predictions.folds)
    if not certainty:
        return learned, {}
    complete = np.flatnonzero(prompts.measures & (prompts.weights > 0.0))
    manifest = learned.draft.manifest
    grounds = grounds_of(prompts, predictions, config)
    manifest = manifest.model_copy(update=certain_entries(prompts, certainty))
    models = manifest.certainty_models
    entries, evidence = {}, {}
    for name, entry in manifest.objectives.items():
        costs = manifest.costs(name)
        stage = Stage.of(
            prompts,
            permitted(entry, grounds, np.array(costs)),
            decided(entry, grounds, np.array(costs)),
            entry.multiplier * grounds.factors,
            is_known,
            costs,
        ).rows(complete)
        rule = best_handover(stage, models)
        found = HandoverEvidence(
            gain_of(stage, cross_played(stage, _among(predictions.folds, complete)), bootstrap),
            _outside(stage, unseen, bootstrap),
        )
        entries[name] = entry.model_copy(update={"handover": entry_of(rule, found, harm_limit)})
        evidence[name] = found
    draft = replace(learned.draft, manifest=manifest.model_copy(update={"objectives": entries}))
    return replace(learned, draft=draft), evidence


def certain_entries(dataset: Dataset, certainty: Mapping[str, list[CurveEntry]]) -> dict[str, Any]:
    """The manifest's keys `certainty` and `instead`, of these curves."""
    instead = {name: fitted_instead(dataset, dataset.experts.index(name)) for name in certainty}
    return {
        "certainty": dict(certainty),
        "instead": {
            name: {other: InsteadEntry(**asdict(one)) for other, one in found.items()}
            for name, found in instead.items()
        },
    }


NOTHING_MOVES = "on all prompts together no margin gains anything, so nothing would be handed over"


def entry_of(rule: Handover, found: HandoverEvidence, harm_limit: float) -> HandoverEntry:
    """The rule with its evidence and verdict, for the manifest."""
    why = NOTHING_MOVES if rule.margin >= NEVER else refusal_of(found, harm_limit)
    return HandoverEntry(
        tokens=rule.tokens,
        margin=rule.margin,
        share=found.inside.share,
        gain=found.inside.gain,
        gain_ci95=(found.inside.low, found.inside.high),
        shipped=why is None,
        refusal=why,
    )


def _outside(inside: Stage, unseen: UnseenGroups | None, bootstrap: Bootstrap) -> HandoverGain | None:
    """The gain on prompts of groups left out of training, by curves and a margin found on the other groups."""
    if unseen is None:
        return None
    folds = group_folds(inside.dataset, GROUP_FOLDS)
    if folds is None:
        return None
    allowed = np.where(np.isfinite(inside.allowed), unseen.expected, -np.inf)
    values = allowed - inside.penalty[:, np.newaxis] * inside.costs
    known = _differs(unseen.expected, unseen.overall)
    stage = replace(inside, allowed=allowed, first=values.argmax(axis=1), known=known)
    return gain_of(stage, cross_played(stage, folds, fit_on=inside), bootstrap)


def refusal_of(evidence: HandoverEvidence, harm_limit: float) -> str | None:
    """Why an objective's handover is not shipped; None if it is."""
    inside, outside = evidence.inside, evidence.outside
    if inside.share == 0.0:
        return "no margin gains anything on prompts that it was not found on"
    if inside.low <= ROUNDING:
        return (
            "its gain over the same router without it, at the same cost, is not certain: the lower bound is"
            f" {100 * inside.low:+.2f} points"
        )
    if outside is not None and outside.gain < -harm_limit - ROUNDING:
        return (
            f"on groups left out of training it changes the score by {100 * outside.gain:+.2f} points, and the harm"
            f" limit is {100 * harm_limit:.2f}"
        )
    return None


def handover_rows(manifest: Manifest, stages: Mapping[str, Stage], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """The block of `evaluation.json`: what each objective's rule does to these prompts."""
    rows = []
    for name, stage in stages.items():
        handover = manifest.objectives[name].handover
        if handover is not None:
            gain = gain_of(stage, by_rule(stage, manifest.certainty_models, handover.rule), bootstrap)
            rows.append({"objective": name, "tokens": handover.tokens, "margin": handover.margin, **gain.as_json()})
    return rows


def examined(learned: Learned, found: Mapping[str, HandoverEvidence], evaluation: dict[str, Any]) -> Learned:
    """The draft without the handovers that certainly lose on held-out prompts; the evidence goes into `evaluation`."""
    manifest = learned.draft.manifest
    objectives = dict(manifest.objectives)
    for row in evaluation.get("handover", ()):
        entry, high = objectives[row["objective"]], row["gain_ci95"][1]
        assert entry.handover is not None, "only objectives with a handover have a row"
        handover = entry.handover
        if handover.shipped and high < -ROUNDING:
            why = (
                "on held-out prompts it loses against the same router without it: the upper bound is"
                f" {100 * high:+.2f} points"
            )
            handover = handover.model_copy(update={"shipped": False, "refusal": why})
            objectives[row["objective"]] = entry.model_copy(update={"handover": handover})
        row |= {"shipped": handover.shipped, "refusal": handover.refusal, **found[row["objective"]].as_json()}
    draft = replace(learned.draft, manifest=manifest.model_copy(update={"objectives": objectives}))
    return replace(learned, draft=draft)


def handover_sentences(evaluation: dict[str, Any]) -> list[str]:
    """One line for each objective, for a terminal."""
    return [
        f"handover, objective {one['objective']}: by {judged_tokens(one['tokens'])} {one['share']:.1%} handed over,"
        f" {_interval(one)} points over the same router without it at equal cost" + _verdict(one)
        for one in evaluation.get("handover", ())
    ]


def _verdict(found: dict[str, Any]) -> str:
    if "shipped" not in found:
        return ""
    return "; shipped" if found["shipped"] else f"; not shipped: {found['refusal']}"


def _interval(found: dict[str, Any]) -> str:
    low, high = found["gain_ci95"]
    return f"{100 * found['gain']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def _differs(expected: Vector, overall: Vector) -> npt.NDArray[np.bool_]:
    """[n]: True where the expected scores are not the overall means."""
    return np.asarray((np.abs(expected - overall) > ROUNDING).any(axis=1))


def _among(folds: tuple[Fold, ...], kept: Ints) -> list[Fold]:
    """The folds of the prompts `kept`, by their numbers among those."""
    place = np.full(int(kept.max()) + 1 if len(kept) else 0, -1)
    place[kept] = np.arange(len(kept))

    def moved(rows: Ints) -> Ints:
        inside = place[rows[rows < len(place)]]
        return np.asarray(inside[inside >= 0])

    return [Fold(moved(fold.seen), moved(fold.left_out)) for fold in folds]
