"""The models on this machine: Hugging Face's cache, folders with GGUF files or whole models, an Ollama store.

Reads names, sizes, small JSON files and headers. A link is followed only where it stays inside the folder that was
given; what is passed over is listed with its reason. Opens no connection.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from coe_server.engines.gguf import GgufHeader, NotGguf, read_gguf
from coe_server.engines.model_size import (
    chosen_weights,
    downloaded_folder,
    files_bytes,
    hub_cache,
    is_complete,
    read_config,
    token_bytes,
)

MOST_ENTRIES = 20_000  # per folder, with its subfolders
MOST_LEVELS = 5
_LONGEST_JSON_BYTES = 32 << 20  # indexes of the largest models have nine MiB
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_ANSWERS = ("ForCausalLM", "ForConditionalGeneration")
_EMBEDDERS = frozenset(("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "gemma-embedding"))


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model that an engine could serve. `model`: its value in the configuration: an id, a file or a folder."""

    name: str  # its name at the place where it was found
    model: str
    form: Literal["safetensors", "gguf"]
    size_bytes: int
    token_bytes: int | None = None  # keys and values
    context_tokens: int | None = None
    told: str = ""  # further information, for people
    embeds: bool = False  # an embedding model
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that looks like a model but cannot be used, and why."""

    place: str
    why: str


Seen = FoundModel | Skipped


def find_models(folders: Iterable[Path], environment: Mapping[str, str]) -> tuple[list[FoundModel], list[Skipped]]:
    """The models in these folders, Hugging Face's cache and Ollama's stores, without duplicates."""
    seen = [*models_in_hub(hub_cache(environment)), *models_of_ollama(environment)]
    for folder in folders:
        seen.extend(models_in_folder(folder))
    models = {one.model: one for one in reversed(seen) if isinstance(one, FoundModel)}
    skipped = {one.place: one for one in seen if isinstance(one, Skipped) and one.place not in models}
    return sorted(models.values(), key=lambda one: (one.form, one.name.lower(), one.model)), list(skipped.values())


def usual_folders(environment: Mapping[str, str]) -> list[Path]:
    """The existing folders in which programs keep GGUF files."""
    home = Path(environment.get("HOME", "/nonexistent"))
    cache = Path(
        environment.get("LLAMA_CACHE") or Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "llama.cpp"
    )
    usual = (Path("models"), home / "models", cache, home / ".lmstudio/models", home / ".cache/lm-studio/models")
    return list(dict.fromkeys(one.absolute() for one in usual if one.is_dir()))


def models_in_hub(cache: Path) -> Iterator[Seen]:
    """Every complete model in Hugging Face's cache."""
    for repository in _entries(cache):
        if not repository.name.startswith("models--"):
            continue
        name = repository.name.removeprefix("models--").replace("--", "/")
        if not is_inside(repository, cache) or _is_odd(repository / "refs/main", 1 << 10):
            yield Skipped(name, f"its folder or a link in it leads out of {cache}")
            continue
        snapshot = downloaded_folder(name, {"HF_HUB_CACHE": str(cache)})
        if snapshot is None or not is_inside(snapshot, repository):
            yield Skipped(name, "has no finished download of its main revision; `coe pull` makes one")
            continue
        ggufs = list(_gguf_files(snapshot, repository))
        yield from ggufs or [_weights(snapshot, repository, name, name)]


def models_in_folder(folder: Path) -> Iterator[Seen]:
    """GGUF files, and folders with a `config.json` and weights, down to a limited depth."""
    if not folder.is_dir():
        yield Skipped(str(folder), "is no folder")
        return
    yield from _gguf_files(folder, folder)
    for place in _walk(folder):
        if isinstance(place, Path) and place.name == "config.json":
            home = place.parent
            if chosen_weights(one.name for one in _entries(home) if not one.name.endswith(".gguf")):
                yield _weights(home, folder, home.name or "model", str(home.absolute()))


def models_of_ollama(environment: Mapping[str, str]) -> Iterator[Seen]:
    """The GGUF files in Ollama's stores, by Ollama's names."""
    home = environment.get("HOME", "/nonexistent")
    given = environment.get("OLLAMA_MODELS")
    stores = (given,) if given else (f"{home}/.ollama/models", "/usr/share/ollama/.ollama/models")
    for store in map(Path, stores):
        manifests = store / "manifests"
        for place in _walk(manifests) if manifests.is_dir() else ():
            if isinstance(place, Path):
                yield _of_manifest(place, manifests, store)


def is_inside(path: Path, folder: Path) -> bool:
    """True if a path, with links followed, is inside a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a circle of links
        return False


def _of_manifest(place: Path, manifests: Path, store: Path) -> Seen:
    """The weights of a manifest at `host/namespace/model/tag`, which names their file by its digest."""
    parts = place.relative_to(manifests).parts
    name = ":".join(("/".join(part for part in parts[1:-1] if part != "library"), parts[-1]))
    layers = _json(place, store).get("layers")
    digests = {
        str(one.get("mediaType", "")).rpartition(".")[2]: str(one.get("digest"))
        for one in (layers if isinstance(layers, list) else ())
        if isinstance(one, dict)
    }
    digest = re.fullmatch(r"sha256:([0-9a-f]{64})", digests.get("model", ""))
    if digest is None or len(parts) != 4:
        return Skipped(f"ollama {name}", "its manifest names no model on this machine")
    found = _gguf([store / f"blobs/sha256-{digest[1]}"], store, name)
    if isinstance(found, Skipped):
        return replace(found, place=f"ollama {name}")
    images = "; its projector for images is left out" if "projector" in digests else ""
    short = (name.removesuffix(":latest"),) if parts[-1] == "latest" else ()
    return replace(found, told=f"{found.told}, from Ollama's store{images}", other_names=(name, *short))


def _gguf_files(folder: Path, root: Path) -> Iterator[Seen]:
    """The GGUF models; parts of one model are combined by their names."""
    parts: dict[tuple[Path, str], list[Path]] = {}
    for place in _walk(folder):
        if isinstance(place, Skipped):
            yield place
        elif place.suffix == ".gguf":
            split = _SPLIT.fullmatch(place.name)
            parts.setdefault((place.parent, split[1] if split else place.stem), []).append(place)
    for (_, stem), files in parts.items():
        yield _gguf(sorted(files), root, stem)


def _gguf(files: list[Path], root: Path, name: str) -> Seen:
    first = files[0]
    if outside := next((one for one in files if not is_inside(one, root)), None):
        return Skipped(str(outside), f"a link leads out of {root}")
    try:
        header = read_gguf(first)
        size_bytes = sum(one.stat().st_size for one in files)
    except NotGguf as error:
        return Skipped(str(first), str(error))
    except OSError as error:
        return Skipped(str(first), f"cannot be read ({error.strerror})")
    if why := _unfit(header, len(files)):
        return Skipped(str(first), why)
    return FoundModel(
        name,
        str(first.absolute()),
        "gguf",
        size_bytes,
        header.token_bytes,
        header.context_tokens,
        header.architecture,
        header.architecture in _EMBEDDERS,
    )


def _unfit(header: GgufHeader, files: int) -> str:
    """Why the file cannot be served; empty if it can."""
    number, count = header.parts
    if header.architecture == "clip" or header.kind in {"mmproj", "clip"}:
        return "is the projector of a model that takes images: add `--mmproj` to that model's command yourself"
    if header.kind != "model":
        return f"is of the kind '{header.kind}', no model"
    if not header.architecture:
        return "its header names no architecture"
    return f"{files} of its {count} parts are here" if count != files or number else ""


_AN_ADAPTER = "is an adapter (LoRA): add it as an expert of engine: lora, with its base"


def _weights(folder: Path, root: Path, name: str, model: str) -> Seen:
    """The model in a folder of Hugging Face's format, if vLLM can generate or embed with it."""
    if not all(is_inside(one, root) for one in _entries(folder) if one.exists()):
        return Skipped(name, f"a link in it leads out of {root}")
    if any(_is_odd(one, _LONGEST_JSON_BYTES) for one in _entries(folder) if one.suffix == ".json"):
        return Skipped(name, "a JSON file of it is larger than any is, or no file")
    if not is_complete(folder):
        return Skipped(name, "its download is not complete; `coe pull` completes it")
    config = read_config(folder)
    architecture = _first(config.get("architectures"))
    text = config.get("text_config", config)
    embeds = (folder / "modules.json").exists()
    if not isinstance(text, dict):
        return Skipped(name, "its config.json cannot be understood")
    if not embeds and (not architecture.endswith(_ANSWERS) or config.get("is_encoder_decoder")):
        is_adapter = not config and (folder / "adapter_config.json").exists()
        told = f"{architecture or 'its config.json'} is not known to answer prompts"
        return Skipped(name, _AN_ADAPTER if is_adapter else told)
    longest, quantised = text.get("max_position_embeddings"), config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    return FoundModel(
        name,
        model,
        "safetensors",
        files_bytes(folder) or 0,
        _token_bytes(config),
        longest if isinstance(longest, int) and longest > 0 else None,
        str(method or architecture),
        embeds,
        (name,) if model == name else (),
    )


def _token_bytes(config: Mapping[str, Any]) -> int | None:
    try:
        return token_bytes(config)
    except (ArithmeticError, AttributeError, ValueError):
        return None


def _first(listed: object) -> str:
    return str(listed[0]) if isinstance(listed, list) and listed else ""


def _walk(folder: Path) -> Iterator[Path | Skipped]:
    """The files of a folder and its subfolders, in order; hidden and linked folders are skipped."""
    left = [MOST_ENTRIES]
    yield from _walked(folder, MOST_LEVELS, left)
    if not left[0]:
        yield Skipped(str(folder), f"has more than {MOST_ENTRIES:,} entries: the others were not looked at")


def _walked(folder: Path, levels: int, left: list[int]) -> Iterator[Path | Skipped]:
    try:
        entries = sorted(os.scandir(folder), key=lambda one: one.name)
    except OSError as error:
        yield Skipped(str(folder), f"cannot be read ({error.strerror})")
        return
    for entry in entries[: left[0]]:
        if not left[0]:
            return
        left[0] -= 1
        if not entry.is_dir(follow_symlinks=False):
            yield folder / entry.name
        elif levels and not entry.name.startswith("."):
            yield from _walked(folder / entry.name, levels - 1, left)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(islice(folder.iterdir(), MOST_ENTRIES))
    except OSError:
        return []


def _is_odd(file: Path, most_bytes: int) -> bool:
    """True if it exists but is not a regular file, or is too long; links are followed."""
    try:
        found = file.stat()
    except OSError:
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes


def _json(file: Path, root: Path) -> dict[str, Any]:
    """Empty where it is none, or not inside."""
    if not is_inside(file, root) or _is_odd(file, 1 << 20):
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
