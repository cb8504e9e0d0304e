"""Prompts without a category take part: the classifier labels those it is sure of and learns again. Pure.

Self-training as in Yarowsky (1995); three rounds are enough for the labels to settle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import CategoryModel, softmax
from router_training.step_one.gram import Gram
from router_training.step_one.models import batch_logits

Ints = npt.NDArray[np.int64]
ROUNDS = 3


def self_trained(
    fit: Callable[[Gram, Ints], CategoryModel], gram: Gram, labels: Ints, confidence: float | None
) -> CategoryModel:
    """A model from n prompts and their `labels` [n], -1 where there is none.

    An unlabelled prompt counts as of its likeliest category once the model gives that at least `confidence`
    (None: never). Its label is found anew in each round.
    """
    known, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    model = fit(gram.rows(known), labels[known])
    if confidence is None or len(unknown) == 0 or len(known) == 0:
        return model
    taken = np.full(len(unknown), -1, dtype=np.int64)
    for _ in range(ROUNDS):
        probabilities = softmax(batch_logits(model, gram.vectors[unknown]))
        sure = np.where(probabilities.max(axis=1) >= confidence, probabilities.argmax(axis=1), -1)
        if np.array_equal(sure, taken):
            break
        taken = sure
        rows = np.concatenate((known, unknown[taken >= 0]))
        model = fit(gram.rows(rows), np.concatenate((labels[known], taken[taken >= 0])))
    return model
