"""Downloads a model from the hub into the cache that its engine uses: only the files that vLLM loads, never twice.

Files that were finished before an interruption stay. No time limit and no lock: no start waits for this.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coe_server.engines.hub import HubSource, explained, hub_files
from coe_server.engines.model_size import chosen_weights, files_bytes, hub_cache, is_complete, model_folder
from coe_server.errors import ConfigError, DownloadFailed

_ROOM_LEFT_BYTES = 256 << 20  # on the disk, for what else is written there
# Weights in formats that are not loaded; what small files a model has beside them is not known beforehand.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".tflite")


@dataclass(frozen=True, slots=True)
class Missing:
    """What is to be downloaded for a model: nothing where all is here."""

    source: HubSource
    files: tuple[str, ...]  # all that the model needs
    size_bytes: int  # that are not here
    cache: Path


def missing(source: HubSource) -> Missing:
    """Asks the hub, whatever is here: a newer version may be there. Raises ConfigError as the hub's questions do."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  a second to import

    files = tuple(_needed(hub_files(source)))
    cache = hub_cache(source.environment)
    try:
        found = snapshot_download(
            source.model,
            revision=source.revision,
            cache_dir=cache,
            allow_patterns=list(files),
            endpoint=source.endpoint,
            token=source.token,
            dry_run=True,
        )
    except Exception as error:  # the library's and its HTTP client's
        raise ConfigError(explained(source, error)) from error
    size_bytes = sum(one.file_size or 0 for one in found if not isinstance(one, str) and one.will_download)
    return Missing(source, files, size_bytes, cache)


def here_already(source: HubSource) -> tuple[Path, int] | None:
    """Folder and bytes of a model that is wholly on this machine."""
    folder = model_folder(source.model, source.environment, source.revision)
    return None if folder is None else (folder, files_bytes(folder) or 0)


def require_room(needed: Missing) -> None:
    """Raises DownloadFailed where the disk of the cache has less room than is to be downloaded."""
    place = next(folder for folder in (needed.cache, *needed.cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed.size_bytes + _ROOM_LEFT_BYTES > free:
        raise DownloadFailed(
            f"{needed.source.model}: {gib(needed.size_bytes)} are to be downloaded, and the disk of {needed.cache} has"
            f" {gib(free)} free; make room, or set HF_HOME to a folder on a larger disk"
        )


def download(needed: Missing) -> Path:
    """The snapshot's folder, complete; on a terminal the library shows its progress. Raises DownloadFailed."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    source = needed.source
    try:
        folder = snapshot_download(
            source.model,
            revision=source.revision,
            cache_dir=needed.cache,
            allow_patterns=list(needed.files),
            endpoint=source.endpoint,
            token=source.token,
        )
    except OSError as error:  # of the disk and of the network
        raise DownloadFailed(f"{source.model}: {error.strerror or explained(source, error)}") from error
    except Exception as error:  # the library's and its HTTP client's
        raise DownloadFailed(f"{source.model}: {explained(source, error)}") from error
    if not is_complete(Path(folder)):
        raise DownloadFailed(f"{source.model}: the download in {folder} is not complete; run `coe pull` again")
    return Path(folder)


def gib(size_bytes: int) -> str:
    """`9.3 GiB`, with what is less than half of one in MiB."""
    return f"{size_bytes / 2**30:,.1f} GiB" if size_bytes >= 1 << 29 else f"{size_bytes / 2**20:,.0f} MiB"


def _needed(listed: Iterable[str]) -> list[str]:
    names = list(listed)
    weights = set(chosen_weights(names))
    return [name for name in names if name in weights or not name.endswith(_WEIGHT_SUFFIXES)]
