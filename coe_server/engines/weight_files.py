"""Where the weight files of a model lie: in its folder, or in Hugging Face's cache. Reads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def weight_files(folder: Path) -> list[Path]:
    """The weight files in a model's folder, of one kind; none if there are none."""
    return next((files for pattern in _PATTERNS if (files := sorted(folder.glob(pattern)))), [])


def downloaded_files(model: str, environment: Mapping[str, str]) -> list[Path]:
    """The same for a folder or a hub id; none where a hub id has not been downloaded yet."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return weight_files(folder)
    repository = _hub_cache(environment) / f"models--{model.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except OSError:
        return []
    return weight_files(repository / "snapshots" / revision)


def _hub_cache(environment: Mapping[str, str]) -> Path:
    if "HF_HUB_CACHE" in environment:
        return Path(environment["HF_HUB_CACHE"]).expanduser()
    caches = environment.get("XDG_CACHE_HOME", "~/.cache")
    return Path(environment.get("HF_HOME", f"{caches}/huggingface")).expanduser() / "hub"
