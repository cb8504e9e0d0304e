"""The name of a host, as it stands in a URL between the slashes. Pure."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")


def parse_host_name(text: str) -> str:
    """In lower case, as URLs are compared. Raises ValueError for what is more or less than a host."""
    name = text.strip().lower()
    if _HOST.fullmatch(name) is None:
        raise ValueError(f"'{text}' is not a host's name: write images.example.com, without https://, port, path or *")
    return name


HostName = Annotated[str, AfterValidator(parse_host_name)]
