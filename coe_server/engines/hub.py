"""Models on the Hugging Face hub: size, `config.json`, and download into the engine's cache.

A query has one overall time limit. A download has none and holds no lock. It fetches only the files that vLLM loads,
and keeps complete files after an interruption. The library is imported late.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from coe_server.config.types import clean_secret
from coe_server.engines.model_size import (
    chosen_weights,
    config_bytes,
    files_bytes,
    hub_cache,
    is_complete,
    model_folder,
)
from coe_server.errors import ConfigError, DownloadFailed

ANSWER_SECONDS = 5.0
_PUBLIC_HUB = "https://huggingface.co"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model's id and the variables that select its hub (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE)."""

    model: str
    environment: Mapping[str, str]
    revision: str = "main"

    @property
    def endpoint(self) -> str:
        return self.environment.get("HF_ENDPOINT", _PUBLIC_HUB).rstrip("/")

    @property
    def token(self) -> str | None:
        """Raises ConfigError, without the value, for one that cannot be sent."""
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            if self.environment.get(name, "").strip():
                return clean_secret(self.environment[name], f"'{self.model}' on {self.endpoint}", name)
        return None

    @property
    def offline(self) -> bool:
        return self.environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def hub_size(source: HubSource, within_seconds: float = ANSWER_SECONDS) -> int:
    """Bytes of the weight files; estimated from `config.json` if the hub lists no sizes. Raises ConfigError."""
    listed = hub_files(source, within_seconds)
    chosen = chosen_weights(listed)
    if chosen and all(listed[name] for name in chosen):
        return sum(listed[name] or 0 for name in chosen)
    size = config_bytes(hub_config(source, within_seconds)) if "config.json" in listed else None
    if size is None:
        raise ConfigError(f"'{source.model}' on {source.endpoint} holds no weights (*.safetensors)")
    return size


def hub_files(source: HubSource, within_seconds: float = ANSWER_SECONDS) -> dict[str, int | None]:
    """File name -> bytes (None if the hub does not list them). Raises ConfigError."""
    return _asked(source, within_seconds, lambda: _listed(source))


def hub_config(source: HubSource, within_seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """The published `config.json`. Raises ConfigError."""
    config = _asked(source, within_seconds, lambda: _fetched_json(source, "config.json"))
    return config if isinstance(config, dict) else {}


def _listed(source: HubSource) -> dict[str, int | None]:
    from huggingface_hub import HfApi  # noqa: PLC0415  takes a second to import; most starts need no hub

    api = HfApi(endpoint=source.endpoint, token=source.token)
    found = api.model_info(source.model, revision=source.revision, files_metadata=True)
    return {one.rfilename: one.size for one in found.siblings or ()}


def _fetched_json(source: HubSource, file: str) -> Any:
    from huggingface_hub import HfApi  # noqa: PLC0415

    api = HfApi(endpoint=source.endpoint, token=source.token)
    with TemporaryDirectory(prefix="coe-") as folder:  # in the cache this file alone would look like a download
        there = api.hf_hub_download(source.model, file, revision=source.revision, local_dir=folder)
        return json.loads(Path(there).read_text())


def _asked(source: HubSource, within_seconds: float, question: Callable[[], _T]) -> _T:
    """Run a query in a thread with a time limit, since the library retries by itself. A late answer is ignored."""
    if source.offline:
        raise ConfigError(f"{source.endpoint} is not queried, since HF_HUB_OFFLINE is set")
    answers: list[_T] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # noqa: BLE001  of the library, its HTTP client, and invalid JSON
            failures.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(within_seconds)
    if failures and isinstance(failures[0], ConfigError):  # its token
        raise failures[0]
    if failures:
        raise ConfigError(explained(source, failures[0])) from failures[0]
    if not answers:
        raise ConfigError(f"{source.endpoint} did not answer within {within_seconds:g} s")
    return answers[0]


def explained(source: HubSource, error: Exception) -> str:
    """An exception of the library as a sentence."""
    from huggingface_hub import errors  # noqa: PLC0415

    name, endpoint = source.model, source.endpoint
    match error:
        case errors.GatedRepoError():
            return f"'{name}' on {endpoint} needs a token with access to it (HF_TOKEN)"
        case errors.RepositoryNotFoundError():
            return f"'{name}' is not on {endpoint}, or needs a token with access to it (HF_TOKEN)"
        case errors.RevisionNotFoundError():
            return f"'{name}' on {endpoint} has no revision '{source.revision}'"
        case errors.HFValidationError():
            return f"'{name}' is neither a folder here nor the id of a model (OWNER/NAME)"
        case errors.HfHubHTTPError():
            return f"{endpoint} refused the query for '{name}': status {error.response.status_code}"
    return f"{endpoint} cannot be reached ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


_ROOM_LEFT_BYTES = 256 << 20  # left free on the disk for other writers
# Weights in formats that are not loaded. Other files cannot be listed beforehand, so all of them are fetched.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".tflite")


@dataclass(frozen=True, slots=True)
class Missing:
    """The missing files of a model; size 0 if it is complete."""

    source: HubSource
    files: tuple[str, ...]  # all files of the model
    size_bytes: int  # of the missing ones
    cache: Path


def missing(source: HubSource) -> Missing:
    """The missing files. Always asks the hub, which may have a newer version. Raises ConfigError."""
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
    """Folder and bytes of a complete local model; None if there is none."""
    folder = model_folder(source.model, source.environment, source.revision)
    return None if folder is None else (folder, files_bytes(folder) or 0)


def require_room(needed: Missing) -> None:
    """Raise DownloadFailed if the cache's disk has too little free space."""
    place = next(folder for folder in (needed.cache, *needed.cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed.size_bytes + _ROOM_LEFT_BYTES > free:
        raise DownloadFailed(
            f"{needed.source.model}: the download needs {gib(needed.size_bytes)}; the disk of {needed.cache} has"
            f" {gib(free)} free; free space, or set HF_HOME to a folder on a larger disk"
        )


def download(needed: Missing) -> Path:
    """Download and return the complete snapshot's folder. The library shows progress on a terminal.

    Raises DownloadFailed.
    """
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
    except OSError as error:  # disk or network
        raise DownloadFailed(f"{source.model}: {error.strerror or explained(source, error)}") from error
    except Exception as error:  # the library's and its HTTP client's
        raise DownloadFailed(f"{source.model}: {explained(source, error)}") from error
    if not is_complete(Path(folder)):
        raise DownloadFailed(f"{source.model}: the download in {folder} is not complete; run `coe pull` again")
    return Path(folder)


def gib(size_bytes: int) -> str:
    """`9.3 GiB`; sizes below half a GiB in MiB."""
    return f"{size_bytes / 2**30:,.1f} GiB" if size_bytes >= 1 << 29 else f"{size_bytes / 2**20:,.0f} MiB"


def _needed(listed: Iterable[str]) -> list[str]:
    names = list(listed)
    weights = set(chosen_weights(names))
    return [name for name in names if name in weights or not name.endswith(_WEIGHT_SUFFIXES)]
