"""What a prompt's own words add to the expected scores of its category: a small linear correction for each expert.

Knows nothing of categories or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from coe_server.routing.features import Floats


@dataclass(frozen=True, slots=True)
class Corrections:
    """`coefficients` [columns, experts]; corrections sum to about 0 over the experts, and so move choices only."""

    coefficients: Floats
