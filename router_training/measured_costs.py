"""What a preset's answers cost beside its base's, measured from the output tokens of recorded outcomes (JSONL)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


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
    experts = [
        {**one, "cost_factor": factors[one["name"]]} if one.get("name") in factors else one for one in raw["experts"]
    ]
    return {**raw, "experts": experts}


def _factor(own: Mapping[str, int], base: Mapping[str, int]) -> float | None:
    both = own.keys() & base.keys()
    below = sum(base[prompt] for prompt in both)
    return sum(own[prompt] for prompt in both) / below if below else None


def _tokens(raw: Mapping[str, Any], folder: Path, experts: set[str]) -> dict[str, dict[str, int]]:
    """Expert -> prompt -> output tokens."""
    data = raw.get("data")
    paths = data.get("outcomes") if isinstance(data, dict) else None
    found: dict[str, dict[str, int]] = {}
    for path in paths if isinstance(paths, list) else [paths]:
        for row in _rows(folder / path) if isinstance(path, str) else ():
            expert, tokens = row.get("expert"), row.get("output_tokens")
            if expert in experts and isinstance(tokens, int) and tokens > 0:
                found.setdefault(expert, {})[str(row.get("prompt_id"))] = tokens
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix != ".jsonl":
        return
    with suppress(OSError, ValueError), path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            row = json.loads(line) if "output_tokens" in line else None
            if isinstance(row, dict):
                yield row


def _mappings(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
