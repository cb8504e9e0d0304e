"""The conditions under which a data set can be trained on, each with a sentence if it is not met."""

from __future__ import annotations

import numpy as np

from coe_server.errors import ConfigError, DatasetError
from coe_server.routing.capabilities import Capabilities, known_modalities, obstacle
from coe_server.routing.decision import GENERAL, RouteOptions
from router_training.config import DEFAULT_LABEL, TrainingConfig
from router_training.data.dataset import Dataset, named_prompts
from router_training.data.split import Split

ANY = RouteOptions()


def require_trainable(sides: Split, config: TrainingConfig) -> None:
    """Raises DatasetError or ConfigError if `fit` would fail on these two sides.

    Pins and bans on discovered categories are checked after discovery.
    """
    _require_prompts(sides, config)
    _require_label(sides.training, config)
    _require_outcomes(sides, config)
    _require_takers(sides, config)
    if (sides.training.labels >= 0).any():
        require_categories(sides.training, config)


def require_categories(dataset: Dataset, config: TrainingConfig) -> None:
    """Raises DatasetError for a category with the gate's name, ConfigError if a pin, ban or probe names a category that
    is not in the data."""
    if GENERAL in dataset.categories:
        raise DatasetError(
            f"category {GENERAL!r} is the router's own name for prompts that are uncertain or unlike the training"
            " data; rename that category"
        )
    named = [("mapping: pins or bans name", name) for name in (*config.mapping.pins, *config.mapping.bans)]
    named += [("probes.own: one names", probe.category) for probe in config.probes.own if probe.category is not None]
    for where, name in named:
        if name != GENERAL and name not in dataset.categories:
            known = ", ".join(dataset.categories)
            raise ConfigError(f"{where} category {name!r}, which the data does not have ({known})")


def _require_prompts(sides: Split, config: TrainingConfig) -> None:
    """Raises DatasetError for an empty side, or training prompts too few for folds.

    Folds need two different prompts of one category, or two different prompts if none has a category.
    """
    share, training = config.data.held_out_share, sides.training
    prompts = len(training) + len(sides.held_out)
    if training.silent.all() and sides.held_out.silent.all():
        raise DatasetError(f"none of the {prompts} prompts has text of a user, which routing reads")
    for name, part in (("train on", training), ("measure by", sides.held_out)):
        if not len(part):
            raise DatasetError(
                f"data.held_out_share: {share:g} leaves none of the {prompts} prompts to {name}"
                + _why_so_few(sides, config)
            )
    _, first = np.unique(training.copies, return_index=True)
    if np.bincount(training.labels[first] + 1).max() < 2:
        raise DatasetError(
            f"the {len(training)} training prompts of {prompts} are too few: no category has two different ones "
            f"(data.held_out_share: {share:g})"
        )


def _why_so_few(sides: Split, config: TrainingConfig) -> str:
    """The part of an error message about prompts that must be on one side of the split."""
    if not len(sides.held_out) and (only := int(sides.training.only_trains.sum())):
        return (
            f": {only} of them only train, since they are synthetic or scored by consensus or certainty; add prompts of"
            " users with outcomes of another scorer"
        )
    copies = np.concatenate((sides.training.copies, sides.held_out.copies))
    if config.data.split_by == "prompt" and (different := len(np.unique(copies))) < len(copies):
        return f": near-duplicates stay together, and {different} of them are different"
    if config.data.split_by == "group":
        groups = len(np.unique(np.concatenate((sides.training.groups, sides.held_out.groups))))
        return f": groups stay whole, and there {'is' if groups == 1 else 'are'} {groups}"
    return ""


def _require_label(training: Dataset, config: TrainingConfig) -> None:
    if (training.labels >= 0).any():
        return
    if config.data.label != DEFAULT_LABEL:
        raise DatasetError(f"no training prompt has a {config.data.label!r}; data.label names the column")
    if config.data.categories != "auto":
        require_room(config.data.categories, len(training), len(np.unique(training.copies)))


def require_room(categories: int, prompts: int, different: int) -> None:
    """Raises DatasetError if with this many categories none would have two different prompts."""
    if categories >= different:
        raise DatasetError(
            f"data.categories: {categories} categories cannot be found in {prompts} prompts,"
            f" {different} of them different"
        )


def _require_outcomes(sides: Split, config: TrainingConfig) -> None:
    """Raises DatasetError without prompts to solve and evaluate on: with weight and an outcome of every expert."""
    for column in np.flatnonzero(np.isnan(np.vstack((sides.training.scores, sides.held_out.scores))).all(axis=0)):
        name = config.expert_names[column]
        raise DatasetError(f"expert {name!r} has no outcome: record some, or take it out of the config's experts")
    for name, part in (("training", sides.training), ("held-out", sides.held_out)):
        if why := part.why_nothing_measures(f"{name} "):
            raise DatasetError(why)


def _require_takers(sides: Split, config: TrainingConfig) -> None:
    """Raises ConfigError if no expert can take some prompt, for example one with images."""
    able = {
        one.name: Capabilities(one.context_tokens, known_modalities(one.sees, one.modalities), one.tools)
        for one in config.experts
    }
    untaken: list[str] = []
    obstacles: list[str] = []
    for part in (sides.training, sides.held_out):
        for name, conversation in zip(part.prompt_ids, part.conversations, strict=True):
            found = [obstacle(expert, None, one, conversation, ANY) for expert, one in able.items()]
            if None not in found:
                untaken.append(name)
                obstacles = obstacles or [f"{expert} {why}" for expert, why in zip(able, found, strict=True)]
    if untaken:
        raise DatasetError(
            f"no expert of the configuration can take {named_prompts(untaken)} ({'; '.join(obstacles)}):"
            " set vision, modalities or context_tokens of an expert that can, or leave these prompts out"
        )
