"""What experts and objectives may be called: it stands in requests, headers, file names and metrics as it is.

An alias stands in requests alone, and may hold more signs."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator


def require_served_name(name: str) -> str:
    """The name itself. Raises ValueError, saying what is allowed."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is None:
        raise ValueError(
            f"{name!r} is not a name: up to 64 letters, digits, '.', '_' and '-', no sign at its beginning"
        )
    return name


def require_alias(name: str) -> str:
    """The name itself: what clients have built in, `openai/gpt-4o` say. Raises ValueError, saying what is allowed."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", name) is None:
        raise ValueError(
            f"{name!r} is no alias: up to 128 letters, digits, '.', '_', '-', ':', '/' and '@', no sign at its start"
        )
    return name


ServedName = Annotated[str, AfterValidator(require_served_name)]
Alias = Annotated[str, AfterValidator(require_alias)]
