"""Which prompts an artifact was trained on, as salted 8-byte hashes: enough to warn, too short to recover a prompt."""

from __future__ import annotations

from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coe_server.routing.artifact import Artifact, read_held_out
from coe_server.routing.features import normalised
from router_training.data.dataset import Dataset

HASH_BYTES = 8


def hashes_of(dataset: Dataset, salt: str) -> npt.NDArray[np.uint64]:
    """[n]: a hash of each prompt, normalised as for features: without case and with single spaces."""
    key = sha256(salt.encode()).digest()
    texts = ("\n".join(turn.text for turn in talk.turns) for talk in dataset.conversations)
    digests = (blake2b(normalised(text).tobytes(), digest_size=HASH_BYTES, key=key).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def prompts_trained_on(folder: Path, artifact: Artifact, dataset: Dataset) -> int | None:
    """How many of these prompts the artifact in `folder` was trained on; None if it has no hashes."""
    known = read_held_out(folder).trained_on
    if len(known) == 0:
        return None
    return int(np.isin(hashes_of(dataset, artifact.manifest.data_hash), known).sum())
