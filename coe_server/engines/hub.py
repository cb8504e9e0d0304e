"""Models on the Hugging Face hub: how large one is, and its `config.json`. Nothing is downloaded into a cache here.

Each question has one time limit for all of it. The library is imported at the first question.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from coe_server.engines.model_size import chosen_weights, config_bytes
from coe_server.errors import ConfigError

ANSWER_SECONDS = 5.0
_PUBLIC_HUB = "https://huggingface.co"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model's id with the variables that say which hub has it (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE)."""

    model: str
    environment: Mapping[str, str]
    revision: str = "main"

    @property
    def endpoint(self) -> str:
        return self.environment.get("HF_ENDPOINT", _PUBLIC_HUB).rstrip("/")

    @property
    def token(self) -> str | None:
        return self.environment.get("HF_TOKEN") or self.environment.get("HUGGING_FACE_HUB_TOKEN") or None

    @property
    def offline(self) -> bool:
        return self.environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def hub_size(source: HubSource, within_seconds: float = ANSWER_SECONDS) -> int:
    """Bytes of the weight files that are loaded; by `config.json` where the hub lists no sizes. Raises ConfigError."""
    listed = hub_files(source, within_seconds)
    chosen = chosen_weights(listed)
    if chosen and all(listed[name] for name in chosen):
        return sum(listed[name] or 0 for name in chosen)
    size = config_bytes(hub_config(source, within_seconds)) if "config.json" in listed else None
    if size is None:
        raise ConfigError(f"'{source.model}' on {source.endpoint} holds no weights (*.safetensors)")
    return size


def hub_files(source: HubSource, within_seconds: float = ANSWER_SECONDS) -> dict[str, int | None]:
    """Each file of the model with its bytes, None where the hub does not list them. Raises ConfigError."""
    return _asked(source, within_seconds, lambda: _listed(source))


def hub_config(source: HubSource, within_seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """The published `config.json`. Raises ConfigError."""
    config = _asked(source, within_seconds, lambda: _fetched_json(source, "config.json"))
    return config if isinstance(config, dict) else {}


def _listed(source: HubSource) -> dict[str, int | None]:
    from huggingface_hub import HfApi  # noqa: PLC0415  a second to import, and most starts need no hub

    api = HfApi(endpoint=source.endpoint, token=source.token)
    found = api.model_info(source.model, revision=source.revision, files_metadata=True)
    return {one.rfilename: one.size for one in found.siblings or ()}


def _fetched_json(source: HubSource, file: str) -> Any:
    from huggingface_hub import HfApi  # noqa: PLC0415

    api = HfApi(endpoint=source.endpoint, token=source.token)
    with TemporaryDirectory(prefix="coe-") as folder:  # a cache with nothing but this file would look like a download
        there = api.hf_hub_download(source.model, file, revision=source.revision, local_dir=folder)
        return json.loads(Path(there).read_text())


def _asked(source: HubSource, within_seconds: float, question: Callable[[], _T]) -> _T:
    """The answer. The library retries by itself, so the time limit is kept from outside: a late answer is ignored."""
    if source.offline:
        raise ConfigError(f"{source.endpoint} is not asked, HF_HUB_OFFLINE is set")
    answers: list[_T] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # noqa: BLE001  the library's, its HTTP client's, and what a mirror makes of JSON
            failures.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(within_seconds)
    if failures:
        raise ConfigError(explained(source, failures[0])) from failures[0]
    if not answers:
        raise ConfigError(f"{source.endpoint} did not answer within {within_seconds:g} s")
    return answers[0]


def explained(source: HubSource, error: Exception) -> str:
    """A failure of the library as a sentence."""
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
            return f"{endpoint} refused the question for '{name}': status {error.response.status_code}"
    return f"{endpoint} cannot be reached ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
