"""Amounts of memory as people write them: `70GiB`, `80%`, `auto`. Knows no settings."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Share(BaseModel):
    """A part of the memory that is there, `0 < fraction <= 1`."""

    model_config = ConfigDict(frozen=True)
    fraction: float


def parse_bytes(value: object) -> object:
    """`70GiB`, `512MiB`, `1048576` as bytes, `80%` as a Share, `auto` as None."""
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not an amount of memory ({_AMOUNTS})")
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]?i?B)", value.strip())
    if match is None:
        raise ValueError(f"'{value}' is not an amount of memory ({_AMOUNTS})")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError(f"'{value}' is not between 0 and 100 %")
        return Share(fraction=number / 100)
    return int(number * _UNITS[unit])


_AMOUNTS = "70GiB, 512MiB, 80% or auto"
_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}


def parse_amount(value: object) -> object:
    """As `parse_bytes`, and not less than nothing."""
    size = parse_bytes(value)
    if isinstance(size, int) and size < 0:
        raise ValueError(f"{value!r} is not an amount of memory ({_AMOUNTS})")
    return size


def parse_byte_count(value: object) -> object:
    """As `parse_bytes`, but neither a share nor `auto`, and more than nothing."""
    size = parse_bytes(value)
    if not isinstance(size, int) or size <= 0:
        raise ValueError(f"{value!r} is not a number of bytes (70GiB, 512MiB)")
    return size


Amount = Annotated[int | Share | None, BeforeValidator(parse_amount)]
ByteCount = Annotated[int, BeforeValidator(parse_byte_count)]
