"""What a preset's answers cost beside its base's, measured from the output tokens of recorded outcomes (JSONL)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST_TOKENS = 1e9  # of an answer


def measured_cost_factors(raw: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Preset -> its tokens as a multiple of its base's, for presets without a `cost_factor` in a raw training config.

    Only prompts count for which both have `output_tokens`; a preset without any is left out. Wrong files are not
    reported here: they are when they are read as data.
    """
    wanted = {
        str(one["name"]): str(one["of"])
        for one in _mappings(raw.get("experts"))
        if one.get("of") and one.get("name") and one.get("cost_factor") is None
    }
    counts = _tokens(raw, folder, {*wanted, *wanted.values()}) if wanted else {}
    factors = {name: _factor(counts.get(name, {}), counts.get(base, {})) for name, base in wanted.items()}
    return {name: round(factor, 4) for name, factor in factors.items() if factor}


def with_measured_cost_factors(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The raw config with the factors that can be measured; those written by hand stay."""
    factors = measured_cost_factors(raw, folder)
    if not factors:
        return dict(raw)
    return {**raw, "experts": [_with_factor(one, factors) for one in raw["experts"]]}


def _with_factor(expert: object, factors: Mapping[str, float]) -> object:
    """Anything but an expert stays: it is refused when the config is checked."""
    factor = factors.get(str(expert.get("name"))) if isinstance(expert, dict) else None
    return expert if factor is None else {**expert, "cost_factor": factor}  # type: ignore[dict-item]  # it is a dict


def _factor(own: Mapping[str, float], base: Mapping[str, float]) -> float | None:
    both = own.keys() & base.keys()
    below = sum(base[prompt] for prompt in both)
    return sum(own[prompt] for prompt in both) / below if below else None


def _tokens(raw: Mapping[str, Any], folder: Path, experts: set[str]) -> dict[str, dict[str, float]]:
    """Expert -> prompt -> output tokens."""
    data = raw.get("data")
    paths = data.get("outcomes") if isinstance(data, dict) else None
    found: dict[str, dict[str, float]] = {}
    for path in paths if isinstance(paths, list) else [paths]:
        for expert, prompt, tokens in _counted(folder / path) if isinstance(path, str) else ():
            if expert in experts:
                found.setdefault(expert, {})[prompt] = tokens
    return found


def _counted(path: Path) -> Iterator[tuple[str, str, float]]:
    """(expert, prompt, output tokens) of each outcome that has all three."""
    for row in _rows(path):
        prompt, tokens = row.get("prompt_id"), row.get("output_tokens")
        if isinstance(tokens, int | float) and 0 < tokens < MOST_TOKENS:
            if isinstance(prompt, float) and prompt.is_integer():  # as `name_in` reads it
                prompt = int(prompt)
            yield str(row.get("expert")), str(prompt), tokens


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        return
    with (
        suppress(OSError, ValueError, RecursionError),
        path.open("rb") as lines,
    ):  # json finds a byte order mark in bytes
        for line in lines:
            row = json.loads(line) if b"output_tokens" in line else None
            if isinstance(row, dict):
                yield row


def _mappings(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
