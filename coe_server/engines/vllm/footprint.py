"""The memory of a vLLM: estimated before its first start by the size of its weights, measured afterwards.

Measured footprints are kept in a small private JSON file, one entry per model, arguments and card. An unreadable file
counts as empty.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coe_server.engines.adapter import slot_bytes
from coe_server.engines.engine import Footprint
from coe_server.engines.model_size import files_bytes, model_folder, weight_files
from coe_server.engines.tensor_headers import shapes_in
from coe_server.engines.vllm.adapter_args import rank_of, slots_of
from coe_server.engines.vllm.command import VllmLaunch, hub_source
from coe_server.errors import ConfigError
from coe_server.system.files import private_folder, replacing

logger = logging.getLogger(__name__)

_UNSEEN_TENSORS_BYTES = 4 << 20  # rotary tables and other buffers outside the weight files
# A sleeping vLLM keeps 1.3 to 1.9 GiB of an H100 (CUDA context, graphs); reported for 0.6 B and 8 B models.
_CUDA_RESIDUE_BYTES = 2 << 30
# One of several ranks also keeps NCCL's buffers: 2.7 GiB in all.
_WIDE_RESIDUE_BYTES = 3 << 30
# vLLM's pinned copy of the weights, rounded up by its allocator: 1.352 x the weights, reported for an H100.
_CUDA_IMAGE_FACTOR = 1.36
_FIRST_RANK_MORE = 1.1  # it also has embeddings and the sampler's buffers
_MOST_ENTRIES = 200
_LONGEST_FILE_BYTES = 1 << 20


def estimated_footprint(launch: VllmLaunch) -> Footprint:
    """Estimate before the first start, rather too large. Raises `ConfigError` if the size is unknown."""
    weights = known_bytes(launch)
    if str(launch.args.get("dtype")) in ("float32", "float"):
        weights *= 2  # files usually have 16-bit numbers
    weights += _UNSEEN_TENSORS_BYTES
    slots, kept = _adapter_bytes(launch)
    cuda = launch.platform == "cuda"
    if cuda:
        weights += slots  # they are in the memory that a sleep copies
    else:
        kept += slots  # on a CPU they stay in the process
    residue = (_CUDA_RESIDUE_BYTES if launch.width == 1 else _WIDE_RESIDUE_BYTES) if cuda else 0
    image = round(weights * _CUDA_IMAGE_FACTOR) if cuda else weights
    return Footprint(
        device_awake=_largest_share(weights, launch) + launch.kv_cache_bytes + residue,
        device_asleep=residue,
        host_process=launch.process_bytes * launch.width + kept,
        host_image=image * launch.copies if launch.can_sleep else 0,
    )


def _adapter_bytes(launch: VllmLaunch) -> tuple[int, int]:
    """Bytes of its adapters: of the slots on the device, and of all adapters in host memory."""
    if not launch.adapters:
        return 0, 0
    rank = rank_of(launch.args, launch.adapters)
    largest = max(one.size_bytes * rank // max(1, one.rank) for one in launch.adapters)
    one_slot = max(slot_bytes(rank, base_shapes(launch)), largest)
    return slots_of(launch.args, launch.adapters) * one_slot, sum(one.size_bytes for one in launch.adapters)


def base_shapes(launch: VllmLaunch) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's tensors by name; empty if its files are not here or have another format."""
    source = hub_source(launch)
    folder = model_folder(source.model, source.environment, source.revision)
    try:
        return {} if folder is None else shapes_in(weight_files(folder))
    except ValueError:  # the engine will say at its start what is wrong with its model
        return {}


def _largest_share(weights_bytes: int, launch: VllmLaunch) -> int:
    """Bytes of the largest rank. The first has more than its share; copies have all, unless experts are sharded."""
    ranks = launch.width // launch.copies
    return weights_bytes if ranks == 1 else round(weights_bytes / ranks * _FIRST_RANK_MORE)


def known_bytes(launch: VllmLaunch) -> int:
    """Size of the weights from files or `weights_bytes`. Raises ConfigError."""
    if launch.weights_bytes is not None:
        return launch.weights_bytes
    source = hub_source(launch)
    try:
        weights = model_bytes(launch.model, source.environment, source.revision)
    except ConfigError as error:
        raise ConfigError(f"experts.{launch.name}.model: {error}") from error
    if weights is None:
        raise ConfigError(
            f"experts.{launch.name}.model: '{launch.model}' is not downloaded; run `coe pull CONFIG {launch.name}`,"
            f" or give experts.{launch.name}.weights_bytes where only the engine sees the files"
        )
    return weights


def model_bytes(
    model: str, environment: Mapping[str, str] = MappingProxyType({}), revision: str = "main"
) -> int | None:
    """Size of a model's local weight files; None for a hub id that is not completely downloaded.

    Raises `ConfigError` for a folder that does not exist or has no weights.
    """
    if (folder := model_folder(model, environment, revision)) is not None:
        return files_bytes(folder)
    if Path(model).expanduser().is_dir():
        raise ConfigError(f"the model folder '{model}' holds no weights (*.safetensors)")
    if model.startswith(("/", "./", "../", "~")):
        raise ConfigError(f"there is no model folder '{model}'")
    return None


def footprint_key(launch: VllmLaunch, weights_bytes: int, card: str) -> str:
    """The key of a measurement: if any part changes, the footprint is measured again."""
    said = [launch.model, weights_bytes, launch.kv_cache_bytes, launch.can_sleep, launch.platform, card]
    said.append(launch.max_concurrency)  # of so many sequences graphs are captured
    if launch.adapters:
        said.append([(one.rank, one.size_bytes) for one in launch.adapters])
    told = json.dumps([*said, launch.command, dict(launch.args)], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def read_footprints(file: Path) -> dict[str, Footprint]:
    """Key -> footprint; empty without a file. An invalid file is ignored with a warning."""
    try:
        with file.open("rb") as there:
            data = there.read(_LONGEST_FILE_BYTES + 1)
        if len(data) > _LONGEST_FILE_BYTES:
            raise ValueError("too long")
        return {str(key): _footprint(entry) for key, entry in json.loads(data).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s: cannot read measured footprints (%s); they will be measured again", file, error)
        return {}


def write_footprints(file: Path, measured: Mapping[str, Footprint]) -> None:
    """Add the measured entries and replace the file atomically; beyond 200 entries the oldest are dropped."""
    private_folder(file.parent)
    known = {key: entry for key, entry in read_footprints(file).items() if key not in measured}
    newest = list((known | dict(measured)).items())[-_MOST_ENTRIES:]
    with replacing(file) as out:
        json.dump({key: footprint._asdict() for key, footprint in newest}, out, indent=1)


def _footprint(entry: Any) -> Footprint:
    found = Footprint(**entry)
    if not all(type(size) is int and size >= 0 for size in found) or found.device_asleep > found.device_awake:
        raise ValueError(f"{entry!r} is not a footprint")
    return found
