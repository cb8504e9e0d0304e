"""What a client with a wrong model name is told."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from coe_server.errors import UnknownModel

_LONGEST_COMPARED = 100  # characters: comparing takes quadratic time
_ALIKE = 0.8  # of difflib's ratio


def unknown_model(model: str, known: Sequence[str]) -> UnknownModel:
    """The error for a `model` that is none of the `known` names; it tells the nearest one."""
    nearest = _nearest(model, known)
    meant = f"; did you mean '{nearest}'?" if nearest is not None else ""
    return UnknownModel(f"unknown model '{model}'; known: {', '.join(known)}{meant}", "model")


def _nearest(model: str, known: Sequence[str]) -> str | None:
    """The known name that is alike, also behind a provider (`openai/auto`) or before a tag (`coder:latest`)."""
    if len(model) > _LONGEST_COMPARED:
        return None
    spellings = {name.lower(): name for name in known}
    asked = model.lower()
    alike = difflib.get_close_matches(asked, spellings, n=1, cutoff=_ALIKE)
    guesses = (asked, asked.rpartition("/")[2], *alike, asked.partition(":")[0])
    return next((spellings[guess] for guess in guesses if guess in spellings), None)
