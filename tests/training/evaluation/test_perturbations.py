from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_training.evaluation.robustness import (
    COURTESIES,
    FENCES,
    FOREIGN,
    PREAMBLES,
    framed_by,
    in_capitals,
    with_typos,
)

words = st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=9), min_size=1, max_size=60)


@given(words, st.integers(0, 100))
def test_typos_move_letters_and_touch_few_words(drawn: list[str], seed: int) -> None:
    text = " ".join(drawn)
    changed = with_typos(text, np.random.default_rng(seed)).split(" ")
    assert [sorted(word) for word in changed] == [sorted(word) for word in drawn]
    assert [word[0] for word in changed] == [word[0] for word in drawn]
    touched = sum(before != after for before, after in zip(drawn, changed, strict=True))
    assert touched <= max(1, len(drawn) // 10)


def test_a_typo_happens() -> None:
    assert with_typos("integral", np.random.default_rng(0)) != "integral"


def test_capitals_are_capitals() -> None:
    assert in_capitals("What?", np.random.default_rng(0)) == "WHAT?"


@pytest.mark.parametrize("frames", [COURTESIES, FENCES, FOREIGN, PREAMBLES])
def test_every_frame_stands_around_the_whole_prompt(frames: tuple[tuple[str, str], ...]) -> None:
    generator = np.random.default_rng(0)
    framed = {framed_by(frames)("What?", generator) for _ in range(300)}
    assert framed == {before + "What?" + after for before, after in frames}
