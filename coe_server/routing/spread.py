"""A little more or less of the multiplier for each prompt, always the same for the same text.

Prompts that look alike are worth alike: outside the gate all have the same expected scores. With one multiplier they
would all change hands at once, and most budgets could be missed or left unspent but never met. Spread over a tenth,
they change hands one after the other, and those whose choice is clear do not notice.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from coe_server.routing.features import Turn

SPREAD = 0.1  # of the multiplier, on top of it: at its bound it still leaves the cheapest expert only


def factor(turns: Sequence[Turn]) -> float:
    """What to multiply the multiplier by, 1 to 1 + SPREAD, evenly spread over texts."""
    digest = 0
    for turn in turns:
        digest = zlib.crc32(turn.text.encode("utf-8", "replace"), digest)
    return 1.0 + SPREAD * digest / 2**32
