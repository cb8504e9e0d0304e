"""The same prompt, written a little differently: what should not change who answers. Pure but for the draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from router_training.dataset import Dataset

Perturbation = Callable[[str, np.random.Generator], str]

WORDS_PER_TYPO = 10
LEAST_LETTERS = 4  # shorter words are left as they are
GREETING = "Hi! Could you please help me with the following? "
THANKS = " Thank you very much in advance."


def with_typos(text: str, generator: np.random.Generator) -> str:
    """Two neighbouring letters inside a word change places, in about one word of ten and at least one."""
    words = text.split(" ")
    long_enough = [at for at, word in enumerate(words) if len(word) >= LEAST_LETTERS]
    if not long_enough:
        return text
    count = max(1, len(long_enough) // WORDS_PER_TYPO)
    for at in generator.choice(long_enough, size=count, replace=False):
        words[at] = _swapped(words[at], int(generator.integers(1, len(words[at]) - 2)))
    return " ".join(words)


def in_capitals(text: str, generator: np.random.Generator) -> str:
    """As if the caps-lock key were stuck."""
    del generator
    return text.upper()


def with_filler(text: str, generator: np.random.Generator) -> str:
    """Politeness before and after."""
    del generator
    return GREETING + text + THANKS


PERTURBATIONS: tuple[Perturbation, ...] = (with_typos, in_capitals, with_filler)


def perturbed(dataset: Dataset, perturb: Perturbation, generator: np.random.Generator) -> Dataset:
    """The data set with every user turn changed."""
    conversations = tuple(
        replace(
            conversation,
            turns=tuple(
                replace(turn, text=perturb(turn.text, generator), embedding=None) for turn in conversation.turns
            ),
        )
        for conversation in dataset.conversations
    )
    return replace(dataset, conversations=conversations)


def _swapped(word: str, at: int) -> str:
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
