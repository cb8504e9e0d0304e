"""The router artifact: the folder that training writes and the server loads. Nothing in it can execute code.

Weights are safetensors, everything else JSON. The folder is written under a temporary name and renamed, so an existing
one is complete. `mapping.json` is not covered by the checksums, so that it can be edited.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as as_safetensors

from coe_server.errors import ArtifactError
from coe_server.routing import artifact_checks
from coe_server.routing.artifact_checks import (
    EMBEDDINGS,
    EVALUATION,
    HELD_OUT,
    MANIFEST,
    MAPPING,
    TOKENIZER,
    WEIGHTS,
    Mapping,
)
from coe_server.routing.artifact_tensors import (
    classifier_from_tensors,
    classifier_tensors,
    feature_tensors,
    features_from_tensors,
    gate_from_tensors,
    gate_tensors,
    table_of,
)
from coe_server.routing.classifier import Classifier, Corrections
from coe_server.routing.features import Vectoriser
from coe_server.routing.gate import Similarity
from coe_server.routing.manifest import Manifest

NOT_SERVED = {"evaluation", "versions", "checksums"}  # may differ between equal routers


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Out-of-fold predictions: `probabilities` [prompts, categories], `corrections` [prompts, experts].

    Also the gate's `trust`, `weights` and the multiplier's `factors`, each [prompts]. `trained_on`: a salted hash of
    each training prompt; absent in older artifacts.
    """

    probabilities: npt.NDArray[np.float32]
    corrections: npt.NDArray[np.float32]
    trust: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    factors: npt.NDArray[np.float32]
    trained_on: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A trained router in memory; `mapping` is objective -> category -> expert, possibly edited."""

    manifest: Manifest
    features: Vectoriser
    classifier: Classifier
    gate: Similarity
    mapping: Mapping
    corrections: Corrections | None = None

    @property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.manifest.experts)

    @property
    def version(self) -> str:
        """The hash of everything that affects decisions."""
        assert self.manifest.checksums, "an artifact has a version after it was saved and read back"
        files = [self.manifest.checksums.get(name) for name in (WEIGHTS, EMBEDDINGS, TOKENIZER)]
        served = [self.manifest.model_dump(exclude=NOT_SERVED), self.mapping, files]
        return hashlib.sha256(json.dumps(served, sort_keys=True).encode()).hexdigest()[:12]

    def pins(self, objective: str) -> dict[str, str]:
        """Category -> expert of the pairs set by hand: in training's configuration or later in mapping.json."""
        solved = self.manifest.objectives[objective].mapping
        changed = {c: e for c, e in self.mapping[objective].items() if solved[c] != e}
        return {**self.manifest.pins, **changed}

    def unserved(self, served_names: Iterable[str]) -> list[str]:
        """Its experts that this server does not serve. Raises ArtifactError if the server serves none of them."""
        served = set(served_names)
        missing = [name for name in self.expert_names if name not in served]
        if len(missing) == len(self.expert_names):
            raise ArtifactError(
                f"this server serves none of the router artifact's experts ({', '.join(missing)};"
                f" it serves {', '.join(sorted(served)) or 'none'}): use the names of training"
            )
        return missing


def load(folder: Path) -> Artifact:
    """Load and check the artifact in a folder.

    Raises ArtifactError if anything is missing, damaged, unknown or inconsistent.
    """
    manifest = artifact_checks.read_manifest(folder)
    artifact_checks.require_undamaged(folder, manifest)
    mapping = artifact_checks.read_mapping(folder, manifest)
    tensors = artifact_checks.read_weights(folder, manifest)
    features = features_from_tensors(tensors, manifest, artifact_checks.read_table(folder, manifest))
    classifier = classifier_from_tensors(tensors, manifest)
    gate = gate_from_tensors(tensors, manifest, features)
    corrections = Corrections(tensors["corrections"]) if manifest.corrections else None
    return Artifact(manifest, features, classifier, gate, mapping, corrections)


def read_held_out(folder: Path) -> HeldOut:
    """The out-of-fold predictions in an artifact folder, used to solve its mapping again."""
    return HeldOut(**artifact_checks.read_held_out(folder, artifact_checks.read_manifest(folder)))


def save(
    artifact: Artifact,
    held_out: HeldOut,
    evaluation: dict[str, Any] | None,
    folder: Path,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write the artifact under a temporary name and rename it to `folder`, replacing an existing artifact.

    `finish` may add files without checksums to the complete artifact before the rename. Raises ArtifactError if
    `folder` exists and is not an artifact, or if the file system refuses.
    """
    require_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as workplace:
            fresh = Path(workplace) / "new"
            fresh.mkdir()
            _write(artifact, held_out, evaluation, fresh)
            if finish is not None:
                finish(fresh)
            _put(fresh, folder, Path(workplace) / "old")
    except OSError as error:  # for a full disk the system names no file
        raise ArtifactError(f"{folder} cannot be written: {error.strerror or error}") from error


def _put(fresh: Path, folder: Path, old: Path) -> None:
    """Rename `fresh` to `folder`. Even after an error one of the two has the name."""
    try:
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except BaseException:  # also after Ctrl-C, since between the renames there is no artifact
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


def require_free(folder: Path) -> None:
    """Raise ArtifactError if the path exists and is neither a router artifact nor an empty folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} exists and is not a router artifact; choose another path")


def _write(artifact: Artifact, held_out: HeldOut, evaluation: dict[str, Any] | None, folder: Path) -> None:
    # not written by safetensors, which would make them readable by their owner only
    (folder / WEIGHTS).write_bytes(as_safetensors(_weights(artifact)))
    parts = (held_out.probabilities, held_out.corrections, held_out.trust, held_out.weights, held_out.factors)
    held_out_tensors: dict[str, npt.NDArray[Any]] = dict(zip(artifact_checks.HELD_OUT_TENSORS, parts, strict=True))
    if len(held_out.trained_on):
        held_out_tensors[artifact_checks.TRAINED_ON] = held_out.trained_on
    (folder / HELD_OUT).write_bytes(as_safetensors(held_out_tensors))
    if (table := table_of(artifact.features)) is not None:
        (folder / EMBEDDINGS).write_bytes(as_safetensors({"vectors": table.vectors}))
        (folder / TOKENIZER).write_text(table.vocabulary, encoding="utf-8")
    _write_json(folder / MAPPING, artifact.mapping)
    if evaluation is not None:
        _write_json(folder / EVALUATION, evaluation)
    sums = {
        name: artifact_checks.digest((folder / name).read_bytes())
        for name in artifact_checks.CHECKED
        if (folder / name).exists()
    }
    _write_json(folder / MANIFEST, artifact.manifest.model_copy(update={"checksums": sums}).model_dump())


def _weights(artifact: Artifact) -> dict[str, npt.NDArray[Any]]:
    corrections = artifact.corrections
    return {
        **feature_tensors(artifact.features),
        **classifier_tensors(artifact.classifier),
        **gate_tensors(artifact.gate),
        **({"corrections": np.ascontiguousarray(corrections.coefficients)} if corrections is not None else {}),
    }


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", errors="replace")
