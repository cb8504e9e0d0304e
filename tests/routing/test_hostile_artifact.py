"""Artifacts made to harm end in one short sentence that a terminal can show, and their files in no more memory."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from coe_server.build.router import build_router
from coe_server.build.service import build_serving
from coe_server.config.schema import load_config
from coe_server.errors import ArtifactError
from coe_server.http.routes.quality import quality_of
from coe_server.routing import artifact as artifacts
from coe_server.routing import artifact_checks
from coe_server.routing.probes import MOST_PROBES, read_probes
from tests.routing.small_artifact import SIZES, held_out, small_artifact

ESCAPE = "\x1b]0;mine\x07"
POINT = {"score": 0.5, "mean_active_params_b": 1.0}
EVALUATION: dict[str, Any] = {
    "n_prompts": 3,
    "best_single": {"expert": "big", "score": 0.5},
    "router": POINT,
    "experts": {"big": 0.5},
    "hull": [POINT],
    "curve": [POINT],
    "by_budget": [{"objective": "cheap", **POINT}],
}


def refusal(act: Callable[[], object]) -> str:
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError) as caught:
            act()
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()
    told = str(caught.value)
    assert told.isprintable()
    assert len(told) < 1_000
    return told


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def put(folder: Path, name: str, data: bytes) -> None:
    """A file with a checksum that fits: as someone would who wants it read."""
    (folder / name).write_bytes(data)
    sums = json.loads((folder / "manifest.json").read_text())["checksums"]
    edit(folder, checksums={**sums, name: hashlib.sha256(data).hexdigest()})


def serve(folder: Path) -> None:
    """What the server, its check and a reload do with an artifact."""
    experts = "".join(f"- {{name: {name}, engine: simulated, weights_bytes: 1MiB}}\n" for name in SIZES)
    config = folder.parent / "serve.yaml"
    config.write_text(f"router: {{artifact: {folder}}}\nexperts:\n{experts}")
    settings = load_config(config)
    build_serving(settings, build_router(settings))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    artifacts.save(small_artifact(), held_out(), EVALUATION, tmp_path / "router")
    serve(tmp_path / "router")
    return tmp_path / "router"


@pytest.mark.parametrize(
    "changes",
    [
        {"categories": ["code", "french", ESCAPE]},
        {"categories": ["code", "french", "two\nlines"]},
        {"categories": ["code", "french", "\u202eturned"]},
        {"data_hash": ESCAPE},
        {"versions": {ESCAPE: "1"}},
        {"versions": {"numpy": ESCAPE}},
        {"checksums": {ESCAPE: "0" * 64}},
        {"pins": {ESCAPE: "big"}},
        {ESCAPE: 1},
        {"y" * 100_000: 1},
    ],
)
def test_names_that_a_terminal_would_obey_are_refused_and_shown_harmless(sound: Path, changes: dict[str, Any]) -> None:
    edit(sound, **changes)
    assert "manifest.json is not valid" in refusal(lambda: serve(sound))


def test_an_unknown_name_of_any_length_is_refused_in_a_short_sentence(sound: Path) -> None:
    mapping = json.loads((sound / "mapping.json").read_text())
    mapping["quality"]["code"] = ESCAPE + "x" * 1_000_000
    (sound / "mapping.json").write_text(json.dumps(mapping))
    assert "names an unknown expert" in refusal(lambda: serve(sound))


@pytest.mark.parametrize(
    ("evaluation", "place"),
    [
        ({}, "n_prompts"),
        ({**EVALUATION, "best_single": None}, "best_single"),
        ({**EVALUATION, "router": {}}, "router.score"),
        ({**EVALUATION, "hull": [{}]}, "hull.0.score"),
        ({**EVALUATION, "curve": 3}, "curve"),
        ({**EVALUATION, "experts": {ESCAPE: 1.0}}, "experts"),
        ({**EVALUATION, "by_budget": [{"objective": ESCAPE, **POINT}]}, "by_budget.0.objective"),
        ({**EVALUATION, "router": {**POINT, "score": float("nan")}}, "router.score"),
        ({**EVALUATION, "experts": [1]}, "experts"),
    ],
)
def test_an_evaluation_that_cannot_be_shown_is_refused_where_it_is_read(
    sound: Path, evaluation: dict[str, Any], place: str
) -> None:
    put(sound, "evaluation.json", json.dumps(evaluation).encode())
    assert f"evaluation.json is not valid at {place}" in refusal(lambda: serve(sound))


def test_an_evaluation_deeper_than_any_is_refused(sound: Path) -> None:
    put(sound, "evaluation.json", b'{"a":' * 100_000)
    assert "evaluation.json is not valid" in refusal(lambda: serve(sound))


def test_an_evaluation_in_prices_is_not_shown() -> None:
    assert quality_of(small_artifact().manifest, {"cost_unit": "price_per_million_tokens"}) is None


def test_a_manifest_longer_than_any_is_not_read(sound: Path) -> None:
    os.truncate(sound / "manifest.json", artifact_checks.LARGEST_MANIFEST_BYTES + 1)
    assert "has 8,388,609 bytes; the limit is 8,388,608" in refusal(lambda: serve(sound))


@pytest.mark.parametrize("name", ["weights.safetensors", "held_out.safetensors"])
def test_a_file_that_is_all_holes_is_never_in_memory(sound: Path, name: str) -> None:
    os.truncate(sound / name, 512 << 20)
    assert f"{name} is damaged" in refusal(lambda: serve(sound))
    os.truncate(sound / name, artifact_checks.LARGEST_FILE_BYTES + 1)
    assert "the limit is 1,073,741,824" in refusal(lambda: serve(sound))


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little"),
        (99).to_bytes(8, "little") + b"{",
        b"".join(
            (
                len(
                    text := json.dumps(
                        {"kept": {"dtype": "I32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}
                    ).encode()
                ).to_bytes(8, "little"),
                text,
            )
        ),
        b"".join((len(text := b"[" * 50_000).to_bytes(8, "little"), text)),
    ],
)
def test_a_header_that_claims_more_than_there_is_is_refused(sound: Path, header: bytes) -> None:
    put(sound, "weights.safetensors", header)
    assert "weights.safetensors is not a safetensors file" in refusal(lambda: serve(sound))


def test_tensors_of_other_names_are_listed_in_short(sound: Path) -> None:
    nothing = np.zeros(1, dtype=np.float32)
    put(sound, "weights.safetensors", save({f"{ESCAPE}{number}": nothing for number in range(1_000)}))
    assert "holds the tensors" in refusal(lambda: serve(sound))


@pytest.mark.parametrize(("name", "value"), [("weights", -1.0), ("probabilities", -0.1), ("probabilities", 7.0)])
def test_held_out_predictions_that_are_none_are_refused(sound: Path, name: str, value: float) -> None:
    tensors = load_file(sound / "held_out.safetensors")
    tensors[name] = np.full_like(tensors[name], value)
    put(sound, "held_out.safetensors", save(tensors))
    assert f"tensor '{name}' in" in refusal(lambda: serve(sound))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("probes:\n- &p {prompt: '" + "x " * 2_000 + "'}\n" + "- *p\n" * 3_000, "after expansion of its aliases"),
        ("probes:\n" + "- {prompt: a}\n" * (MOST_PROBES + 1), "is not valid at probes"),
        ('probes:\n- {prompt: a, category: "\\e[31m"}\n', "is not valid at probes.0.category"),
        ('probes:\n- {prompt: a, experts: {quality: "\\e[31m"}}\n', "is not valid at probes.0.experts"),
        ('probes:\n- {prompt: a, "\\e[31m": 1}\n', r"is not valid at probes.0.\x1b[31m"),
        ("probes: " + "[" * 50_000, "is nested deeper than 64 levels"),
        ("probes: 2026-13-45", "is not YAML"),
    ],
)
def test_probes_are_bounded(sound: Path, text: str, told: str) -> None:
    (sound / "probes.yaml").write_text(text)
    assert told in refusal(lambda: read_probes(sound))


def test_what_is_no_file_is_not_waited_for(sound: Path) -> None:
    (sound / "mapping.json").unlink()
    os.mkfifo(sound / "mapping.json")
    assert "mapping.json is missing" in refusal(lambda: serve(sound))
