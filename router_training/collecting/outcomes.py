"""The outcomes file: a row for each prompt and expert that has a score; written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coe_server.errors import DatasetError

SCHEMA = pa.schema(
    [("prompt_id", pa.string()), ("expert", pa.string()), ("score", pa.float64()), ("output_tokens", pa.int64())]
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`score` in [0, 1]; `output_tokens` is None where the endpoint does not count."""

    prompt_id: str
    expert: str
    score: float
    output_tokens: int | None


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """JSONL or Parquet, by the file's name; a file of that name is replaced when the new one is complete."""
    refuse_unknown_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as workplace:
        unfinished = Path(workplace) / path.name
        if path.suffix == ".parquet":
            _write_parquet(unfinished, outcomes)
        else:
            _write_jsonl(unfinished, outcomes)
        unfinished.replace(path)


def refuse_unknown_format(path: Path) -> None:
    """DatasetError unless the file's name says which format it is to have."""
    if path.suffix not in {".jsonl", ".parquet"}:
        raise DatasetError(f"{path}: outcomes are written as .jsonl or .parquet")


def _write_jsonl(path: Path, outcomes: Sequence[Outcome]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in outcomes)
        file.flush()
        os.fsync(file.fileno())


def _write_parquet(path: Path, outcomes: Sequence[Outcome]) -> None:
    pq.write_table(pa.Table.from_pylist([asdict(outcome) for outcome in outcomes], schema=SCHEMA), path)
