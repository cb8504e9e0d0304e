"""Reads and checks the files of an artifact folder. Every error is one sentence.

Trusts nothing: file names are fixed here, not taken from the manifest, and checksums are compared before parsing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from coe_server.config.mistakes import Mistake
from coe_server.config.routes import DEFAULT_ROUTE
from coe_server.errors import ArtifactError, ConfigError
from coe_server.routing.artifact_tensors import (
    Shapes,
    Tensors,
    classifier_fault,
    classifier_shapes,
    column_count,
    feature_fault,
    feature_shapes,
    gate_fault,
    gate_shapes,
)
from coe_server.routing.certainty import judged_tokens
from coe_server.routing.decision import GENERAL
from coe_server.routing.embeddings import StaticEmbeddings
from coe_server.routing.manifest import FORMAT_VERSION, CostUnit, Manifest
from coe_server.system.visible import brief

MANIFEST, MAPPING, EVALUATION = "manifest.json", "mapping.json", "evaluation.json"
WEIGHTS, HELD_OUT = "weights.safetensors", "held_out.safetensors"
EMBEDDINGS, TOKENIZER = "embeddings.safetensors", "tokenizer.json"  # files of static embeddings
CHECKED = (WEIGHTS, HELD_OUT, EVALUATION, EMBEDDINGS, TOKENIZER)
# Far larger than any router; larger files would fill the memory or take too long to read while serving.
LARGEST_MANIFEST_BYTES, LARGEST_JSON_BYTES, LARGEST_FILE_BYTES = 8 << 20, 64 << 20, 1 << 30
_LARGEST_BYTES = {MANIFEST: LARGEST_MANIFEST_BYTES, MAPPING: LARGEST_MANIFEST_BYTES, EVALUATION: LARGEST_MANIFEST_BYTES}
HELD_OUT_TENSORS = ("probabilities", "corrections", "trust", "weights", "factors")
TRAINED_ON = "trained_on"  # an optional tensor of held-out predictions; older artifacts lack it

T = TypeVar("T")
Mapping = dict[str, dict[str, str]]


class _FormatOnly(BaseModel):
    """The format version, read first: a newer format may have keys that this version refuses."""

    format_version: Annotated[int, Field(strict=True)]


def read_manifest(folder: Path) -> Manifest:
    """The manifest, checked for validity and consistency."""
    if not folder.is_dir():
        raise ArtifactError(
            f"router artifact: there is no folder {folder}; `coe-train fit` or `coe-train draft` writes one,"
            " `coe serve --names-only` needs none"
        )
    data = _bytes(folder / MANIFEST)
    version = _parsed(folder / MANIFEST, TypeAdapter(_FormatOnly), data).format_version
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"router artifact: {folder / MANIFEST} has format version {version}; this server reads {FORMAT_VERSION}"
        )
    manifest = _parsed(folder / MANIFEST, TypeAdapter(Manifest), data)
    _require_consistency(folder / MANIFEST, manifest)
    return manifest


def read_mapping(folder: Path, manifest: Manifest) -> Mapping:
    """objective -> category -> expert; complete, with known names only."""
    path = folder / MAPPING
    mapping = _parsed(path, TypeAdapter(Mapping), _bytes(path))
    _require_same(path, "objective", manifest.objectives, mapping)
    for objective, pairs in mapping.items():
        _require_pairs(path, objective, pairs, manifest)
    return mapping


def read_weights(folder: Path, manifest: Manifest) -> Tensors:
    """The tensors of features, classifier and gate, with shapes checked against the manifest."""
    tensors = _checked_tensors(folder, WEIGHTS, manifest)
    columns = column_count(tensors, manifest)
    shapes: Shapes = {
        **feature_shapes(tensors, manifest),
        **classifier_shapes(tensors, manifest, columns),
        **gate_shapes(tensors, manifest),
    }
    if manifest.corrections:
        shapes["corrections"] = (np.float32, (columns, len(manifest.experts)))
    _require_shapes(folder / WEIGHTS, tensors, shapes)
    faults = (feature_fault(tensors, manifest), classifier_fault(tensors, manifest), gate_fault(tensors, manifest))
    for fault in faults:
        if fault is not None:
            raise ArtifactError(f"router artifact: {fault} in {folder / WEIGHTS}")
    return tensors


def read_table(folder: Path, manifest: Manifest) -> StaticEmbeddings | None:
    """The static embeddings; None if the features do not use them."""
    if manifest.features.kind != "static":
        return None
    tensors = _checked_tensors(folder, EMBEDDINGS, manifest)
    shape = (_length(tensors.get("vectors")), manifest.features.dimensions)
    _require_shapes(folder / EMBEDDINGS, tensors, {"vectors": (np.float32, shape)})
    try:
        vocabulary = _checked_bytes(folder, TOKENIZER, manifest).decode("utf-8")
        return StaticEmbeddings.of(tensors["vectors"], vocabulary)
    except (UnicodeDecodeError, ConfigError) as error:
        raise ArtifactError(f"router artifact: {folder / TOKENIZER}: {brief(str(error))}") from error


def read_held_out(folder: Path, manifest: Manifest) -> Tensors:
    """The out-of-fold predictions."""
    tensors = _checked_tensors(folder, HELD_OUT, manifest)
    prompts = _length(tensors.get("weights"))
    shapes: Shapes = {
        "probabilities": (np.float32, (prompts, len(manifest.categories))),
        "corrections": (np.float32, (prompts, len(manifest.experts))),
        "trust": (np.float32, (prompts,)),
        "weights": (np.float32, (prompts,)),
        "factors": (np.float32, (prompts,)),
    }
    if TRAINED_ON in tensors:
        shapes[TRAINED_ON] = (np.uint64, (_length(tensors[TRAINED_ON]),))
    _require_shapes(folder / HELD_OUT, tensors, shapes)
    for name, largest in (("probabilities", 1.001), ("weights", np.inf)):
        if tensors[name].min() < 0.0 or tensors[name].max() > largest:
            raise ArtifactError(f"router artifact: tensor {name!r} in {folder / HELD_OUT} has invalid values")
    return tensors


def read_evaluation(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """The content of `evaluation.json`; None if the file is missing."""
    if EVALUATION not in manifest.checksums:
        return None
    data = _checked_bytes(folder, EVALUATION, manifest)
    return _parsed(folder / EVALUATION, TypeAdapter(dict[str, Any]), data)


def require_undamaged(folder: Path, manifest: Manifest) -> None:
    """Verify the checksum of every file in the manifest, also of files that serving does not read."""
    for name in manifest.checksums:
        path = folder / name
        _require_size(path)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ArtifactError(f"router artifact: {path} cannot be read: {error.strerror}") from error
        _require_sum(path, found, manifest)


def digest(data: bytes) -> str:
    """The checksum of a file's content, as in the manifest."""
    return hashlib.sha256(data).hexdigest()


def _bytes(path: Path) -> bytes:
    _require_size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"router artifact: {path} cannot be read: {error.strerror}") from error


def _require_size(path: Path) -> None:
    if not path.is_file():
        raise ArtifactError(f"router artifact: {path} is missing")
    largest = _LARGEST_BYTES.get(path.name, LARGEST_JSON_BYTES if path.suffix == ".json" else LARGEST_FILE_BYTES)
    if (size := path.stat().st_size) > largest:
        raise ArtifactError(f"router artifact: {path} has {size:,} bytes; the limit is {largest:,}")


def _parsed(path: Path, shape: TypeAdapter[T], data: bytes) -> T:
    try:
        return shape.validate_json(data)
    except ValidationError as error:
        mistake = Mistake.first(error.errors(include_url=False, include_input=False))
        raise ArtifactError(f"router artifact: {path} {mistake.invalid}") from error


def _require_consistency(path: Path, manifest: Manifest) -> None:
    experts = [expert.name for expert in manifest.experts]
    for what, names in (("category", manifest.categories), ("expert", experts)):
        if len(set(names)) < len(names):
            raise ArtifactError(f"router artifact: {path} names a {what} twice")
    table = {EMBEDDINGS, TOKENIZER} if manifest.features.kind == "static" else set()
    if not {WEIGHTS, HELD_OUT} | table <= set(manifest.checksums) <= {WEIGHTS, HELD_OUT, EVALUATION} | table:
        listed = brief(", ".join(repr(name) for name in manifest.checksums)) or "nothing"
        raise ArtifactError(f"router artifact: {path} has checksums of {listed} instead of {', '.join(CHECKED)}")
    _require_same(path, "category", manifest.categories, manifest.score)
    for scores in (manifest.overall, *manifest.score.values()):
        _require_same(path, "expert", experts, scores)
    for name, objective in manifest.objectives.items():
        _require_pairs(path, name, objective.mapping, manifest)
        _require_known(path, "expert", [*objective.experts, objective.fallback], experts)
        _require_costs(path, manifest, objective.budget_unit or manifest.cost_unit)
        if not objective.experts:
            raise ArtifactError(f"router artifact: objective {name!r} in {path} has no expert")
    _require_routes(path, manifest, experts)
    _require_certainty(path, manifest, experts)
    _require_known(path, "category", [*manifest.pins, *manifest.bans], [*manifest.categories, GENERAL])
    banned = [expert for names in manifest.bans.values() for expert in names]
    _require_known(path, "expert", [*manifest.pins.values(), *banned], experts)


def _require_routes(path: Path, manifest: Manifest, experts: list[str]) -> None:
    if manifest.routes is None:
        return
    _require_same(path, "category", manifest.categories, manifest.routes)
    if DEFAULT_ROUTE not in manifest.routes:
        raise ArtifactError(f"router artifact: {path} has routes, but no route {DEFAULT_ROUTE!r}")
    for route in manifest.routes.values():
        _require_known(path, "expert", route.experts, experts)
        _require_known(path, "expert", [route.otherwise] if route.otherwise else [], experts)


def _require_certainty(path: Path, manifest: Manifest, experts: list[str]) -> None:
    known = manifest.certainty or {}
    for names in (known, manifest.instead, *manifest.instead.values()):
        _require_known(path, "expert", names, experts)
    for name, curves in known.items():
        if len({curve.tokens for curve in curves}) < len(curves):
            raise ArtifactError(
                f"router artifact: {path} has two certainty curves of {name!r} for one number of tokens"
            )
    calibrated = {curve.tokens for curves in known.values() for curve in curves}
    for name, objective in manifest.objectives.items():
        if objective.handover is not None and objective.handover.tokens not in calibrated:
            raise ArtifactError(
                f"router artifact: objective {name!r} in {path} hands over by"
                f" {judged_tokens(objective.handover.tokens)}, and no expert's certainty is calibrated for them"
            )


def _require_costs(path: Path, manifest: Manifest, unit: CostUnit) -> None:
    for expert in manifest.experts:
        if getattr(expert, unit) is None and manifest.routes is None:
            raise ArtifactError(f"router artifact: expert {expert.name!r} in {path} has no {unit}")


def _require_pairs(path: Path, objective: str, pairs: dict[str, str], manifest: Manifest) -> None:
    for category in (*manifest.categories, GENERAL):
        if category not in pairs:
            raise ArtifactError(
                f"router artifact: category {category!r} has no expert under objective {objective!r} in {path}"
            )
    _require_known(path, "category", pairs, [*manifest.categories, GENERAL])
    _require_known(path, "expert", pairs.values(), [expert.name for expert in manifest.experts])


def _require_known(path: Path, what: str, names: Any, known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ArtifactError(f"router artifact: {path} names an unknown {what} '{brief(name)}'")


def _require_same(path: Path, what: str, expected: Any, found: Any) -> None:
    _require_known(path, what, found, list(expected))
    for name in expected:
        if name not in found:
            raise ArtifactError(f"router artifact: {what} {name!r} is missing in {path}")


def _checked_bytes(folder: Path, name: str, manifest: Manifest) -> bytes:
    data = _bytes(folder / name)
    _require_sum(folder / name, digest(data), manifest)
    return data


def _require_sum(path: Path, found: str, manifest: Manifest) -> None:
    if found != manifest.checksums[path.name]:
        raise ArtifactError(f"router artifact: {path} is damaged: its checksum differs from the manifest's")


def _checked_tensors(folder: Path, name: str, manifest: Manifest) -> Tensors:
    path = folder / name
    data = _checked_bytes(folder, name, manifest)
    try:
        return dict(load_tensors(data))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"router artifact: {path} is not a safetensors file: {brief(str(error))}") from error


def _require_shapes(path: Path, tensors: Tensors, shapes: Shapes) -> None:
    if set(tensors) != set(shapes):
        raise ArtifactError(
            f"router artifact: {path} holds the tensors {brief(', '.join(sorted(tensors))) or 'none'}"
            f" instead of {', '.join(shapes)}"
        )
    for name, (dtype, shape) in shapes.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.shape != shape or 0 in shape:
            raise ArtifactError(
                f"router artifact: tensor {name!r} in {path} is {tensor.dtype} {list(tensor.shape)}"
                f" instead of {np.dtype(dtype)} {list(shape)}"
            )
        if not np.isfinite(tensor).all():
            raise ArtifactError(f"router artifact: tensor {name!r} in {path} has values that are not numbers")


def _length(tensor: npt.NDArray[Any] | None) -> int:
    return len(tensor) if tensor is not None and tensor.ndim > 0 else 0
