"""A simulated world: experts whose first tokens say, weakly or strongly, whether they are right; and a router."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coe_server.routing.certainty import SURE
from coe_server.routing.conversation import Conversation
from router_training.data.dataset import Dataset
from router_training.data.first_tokens import LENGTHS, FirstTokens
from router_training.evaluation.handover import Stage

Vector = npt.NDArray[np.float64]

WEAK = 0.954  # standard deviations between right and wrong answers: AUROC 0.75
EXPERTS = ("a", "b", "c")
LENGTH = 40.0  # tokens


def stage(
    prompts: int,
    chances: tuple[float, float, float],
    strength: float = WEAK,
    seed: int = 0,
    costs: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Stage:
    """Each prompt's experts in an order of their own: the router's first, second and third are right with `chances`.

    The router's expected scores are calibrated: of those three probabilities it knows all but a little noise.
    """
    draw = np.random.default_rng(seed)
    order = np.argsort(draw.random((prompts, 3)), axis=1)
    chance = np.clip(np.array(chances) + draw.normal(0.0, 0.05, (prompts, 3)), 0.0, 1.0)
    expected = np.empty((prompts, 3))
    np.put_along_axis(expected, order, chance, axis=1)
    scores = (draw.random((prompts, 3)) < expected).astype(np.float64)
    dataset = Dataset(
        tuple(f"p{n}" for n in range(prompts)),
        tuple(Conversation.of_prompt(f"p{n}") for n in range(prompts)),
        ("topic",),
        np.zeros(prompts, dtype=np.int64),
        np.array([f"g{n % 5}" for n in range(prompts)]),
        np.ones(prompts),
        EXPERTS,
        scores,
        np.arange(prompts),
        said=FirstTokens(_means(scores, strength, draw), np.full((prompts, 3), LENGTH)),
    )
    first = expected.argmax(axis=1)
    return Stage.of(dataset, expected, first, np.zeros(prompts), np.ones(prompts, dtype=np.bool_), costs)


def _means(scores: Vector, strength: float, draw: np.random.Generator) -> Vector:
    """[n, experts, LENGTHS]: mean log-probabilities that tell right from wrong by `strength`; all lengths alike."""
    certainty = draw.normal(1.5, 1.0, scores.shape) + strength * scores
    means = np.minimum(SURE - np.exp(-certainty), 0.0)
    return np.repeat(means[:, :, np.newaxis], len(LENGTHS), axis=2)
