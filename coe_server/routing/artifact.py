"""The router artifact: the folder that training writes and the server loads. Nothing in it can execute code.

Weights are safetensors, everything else JSON. A folder that is there is complete: it is written beside its
place and renamed. `mapping.json` is outside the checksums, so that a person may change a line.
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

NOT_SERVED = {"evaluation", "versions", "checksums"}  # what may differ between two equal routers


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Out-of-fold `probabilities` [prompts, categories], `corrections` [prompts, experts], the gate's
    `trust`, `weights` and the multiplier's `factors`, each [prompts].

    `trained_on` has a salted hash of each prompt that the artifact was trained on; older artifacts have none.
    """

    probabilities: npt.NDArray[np.float32]
    corrections: npt.NDArray[np.float32]
    trust: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    factors: npt.NDArray[np.float32]
    trained_on: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A trained router in memory; `mapping` is objective -> category -> expert as a person may have changed it."""

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
        """The hash of what is served."""
        assert self.manifest.checksums, "an artifact has a version once it was saved and read back"
        files = [self.manifest.checksums.get(name) for name in (WEIGHTS, EMBEDDINGS, TOKENIZER)]
        served = [self.manifest.model_dump(exclude=NOT_SERVED), self.mapping, files]
        return hashlib.sha256(json.dumps(served, sort_keys=True).encode()).hexdigest()[:12]

    def pins(self, objective: str) -> dict[str, str]:
        """Category -> expert where a person overruled the solution: in training's configuration or since."""
        solved = self.manifest.objectives[objective].mapping
        changed = {c: e for c, e in self.mapping[objective].items() if solved[c] != e}
        return {**self.manifest.pins, **changed}

    def unserved(self, served_names: Iterable[str]) -> list[str]:
        """The experts it knows that this server does not serve. Raises ArtifactError if it serves none of them."""
        served = set(served_names)
        missing = [name for name in self.expert_names if name not in served]
        if len(missing) == len(self.expert_names):
            raise ArtifactError(
                f"the router artifact knows only experts that this server does not serve ({', '.join(missing)};"
                f" it serves {', '.join(sorted(served)) or 'none'}): name the experts as they were named in training"
            )
        return missing


def load(folder: Path) -> Artifact:
    """The artifact in a folder, checked.

    Raises ArtifactError, one sentence, for anything missing, damaged, unknown or inconsistent.
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
    """The out-of-fold predictions kept in an artifact folder, for re-solving its mapping."""
    return HeldOut(**artifact_checks.read_held_out(folder, artifact_checks.read_manifest(folder)))


def save(
    artifact: Artifact,
    held_out: HeldOut,
    evaluation: dict[str, Any] | None,
    folder: Path,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes the artifact beside `folder` and renames it; an artifact already there is replaced.

    `finish` may add files outside the checksums to the complete artifact before it gets its name.
    Raises ArtifactError if something other than an artifact is in the way, or if the file system refuses.
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
    except OSError as error:  # of a full disk the system does not say where
        raise ArtifactError(f"{folder} cannot be written: {error.strerror or error}") from error


def _put(fresh: Path, folder: Path, old: Path) -> None:
    """`fresh` takes the name of `folder`; whatever happens, one of the two has it."""
    try:
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except BaseException:  # Ctrl-C too: between the two renames there would be no artifact
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


def require_free(folder: Path) -> None:
    """Raises ArtifactError if something other than a router artifact (or an empty folder) is at this place."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} exists and is not a router artifact; it is left alone")


def _write(artifact: Artifact, held_out: HeldOut, evaluation: dict[str, Any] | None, folder: Path) -> None:
    # written by us and not by safetensors, which makes files that only their owner can read
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
