"""The rows of JSONL and Parquet files, and the values in them; a mistake names file and row."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coe_server.errors import DatasetError, RequestError
from coe_server.routing.conversation import Conversation, read_messages
from coe_server.routing.features import well_formed
from coe_server.system.visible import visible

Row = Mapping[str, Any]
HEAVIEST = 1e9  # largest weight of a prompt: sums of squares of thousands of them stay finite
LONGEST_NAME = 200  # characters of a category, as an artifact's manifest keeps it
LONGEST_SHOWN = 80  # characters of a wrong value
ONE_A_LINE = "expected one JSON object a line, or Parquet with a name that ends in .parquet"


def read_rows(path: Path, columns: Collection[str] | None = None) -> Iterable[tuple[int, Row]]:
    """The rows of a JSONL or Parquet file, numbered from 1; of Parquet only these `columns`, if given.

    A lone surrogate, which JSON can express and UTF-8 cannot, is read as "?", as in serving.
    Raises DatasetError naming file and row.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file" if not path.exists() else f"{path} is not a file")
    if path.suffix == ".parquet":
        return enumerate(_parquet_rows(path, columns), start=1)
    return _json_rows(path)


def _parquet_rows(path: Path, columns: Collection[str] | None) -> list[Row]:
    try:
        with pq.ParquetFile(path) as file:
            wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            table = file.read(wanted)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from error
    try:
        rows: list[Row] = table.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:  # text that is not UTF-8, times out of range
        raise DatasetError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return rows


def _json_rows(path: Path) -> Iterable[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _well_formed(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{path}, row {number} is not JSON ({error}); {ONE_A_LINE}") from error
            if not isinstance(row, dict):
                raise DatasetError(f"{path}, row {number} is not an object; {ONE_A_LINE}")
            yield number, row


def _well_formed(value: Any) -> Any:
    """The value with lone surrogates replaced."""
    if isinstance(value, str):
        return value if value.isascii() else well_formed(value)
    if isinstance(value, list):
        return [_well_formed(one) for one in value]
    if isinstance(value, dict):
        return {well_formed(key): _well_formed(one) for key, one in value.items()}
    return value


def conversation_in(path: Path, number: int, row: Row) -> Conversation:
    if isinstance(row.get("prompt"), str):
        return Conversation.of_prompt(row["prompt"])
    if not isinstance(row.get("messages"), list):
        raise DatasetError(f"{path}, row {number} has neither a text 'prompt' nor a list of 'messages'")
    try:
        conversation = read_messages(row["messages"])
    except RequestError as error:
        raise DatasetError(f"{path}, row {number}: {error}") from error
    for position, message in enumerate(row["messages"]):
        if not isinstance(message.get("role"), str):
            raise DatasetError(
                f"{path}, row {number}: messages[{position}] has no 'role'; expected objects with 'role' and 'content'"
            )
    return conversation


def text_in(path: Path, number: int, row: Row, column: str) -> str:
    value = name_in(path, number, row, column)
    if value is None:
        raise DatasetError(f"{path}, row {number} has no {column!r}")
    return value


def name_in(path: Path, number: int, row: Row, column: str) -> str | None:
    """A text, or a number as text (0 included); None for a missing value."""
    value = row.get(column)
    if value == "" or is_nothing(value):
        return None
    if not isinstance(value, str | int | float):
        raise DatasetError(f"{path}, row {number}: {column} {shown_value(value)} is not a text")
    return as_text(value)


def as_text(value: object) -> str:
    """A text as it is, 7.0 as "7": tables write whole numbers so where the column has a missing value."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def writer_in(path: Path, number: int, row: Row) -> str:
    """The expert that wrote the prompt; "" for a prompt of users, also where the column says false."""
    said = name_in(path, number, row, "synthetic")
    return "" if said is None or row["synthetic"] in (False,) else said


def category_in(path: Path, number: int, row: Row, column: str) -> str | None:
    """Control characters in a name are escaped: an artifact accepts no others."""
    said = name_in(path, number, row, column)
    name = visible(said) if said is not None else None
    if name is not None and len(name) > LONGEST_NAME:
        raise DatasetError(f"{path}, row {number}: {column} has {len(name)} characters; the limit is {LONGEST_NAME}")
    return name


def is_nothing(value: object) -> bool:
    """True for null, or NaN, which represents it in some tables."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def weight_in(path: Path, number: int, row: Row) -> float:
    return 1.0 if is_nothing(row.get("weight")) else number_in(path, number, row, "weight", HEAVIEST)


def number_in(path: Path, number: int, row: Row, column: str, largest: float) -> float:
    value = row.get(column)
    if value is None:
        raise DatasetError(f"{path}, row {number} has no {column!r}")
    if not isinstance(value, int | float | Decimal) or not 0.0 <= value <= largest:
        raise DatasetError(
            f"{path}, row {number}: {column} must be a number from 0 to {largest:g}, not {shown_value(value)}"
        )
    return float(value)


def shown_value(value: object) -> str:
    """A value for a message: its repr, truncated."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
