"""What may stand beside text in a request, as configurations and artifacts name it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

Modality = Literal["image", "audio", "video", "file"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


def contradiction(vision: bool | None, modalities: Sequence[Modality] | None) -> str | None:
    """What is wrong where both are given, `vision` being the older word for images; None if they agree."""
    if vision is None or modalities is None or vision == ("image" in modalities):
        return None
    listed = ", ".join(modalities) or "none"
    return f"vision is {str(vision).lower()}, and image is {'not ' if vision else ''}among the modalities ({listed})"
