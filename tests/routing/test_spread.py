from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.features import Turn
from coe_server.routing.spread import SPREAD, factor


@given(st.text(), st.text())
def test_a_factor_is_that_of_the_text_and_never_below_one(first: str, second: str) -> None:
    turns = (Turn(first, 0.5), Turn(second))
    assert factor(turns) == factor(turns)
    assert 1.0 <= factor(turns) < 1.0 + SPREAD


def test_factors_are_spread_evenly_over_texts() -> None:
    found = np.array([factor((Turn(f"prompt number {number}"),)) for number in range(2000)])
    shares, _ = np.histogram(found, bins=10, range=(1.0, 1.0 + SPREAD))
    assert shares.min() > 150
    assert shares.max() < 250
