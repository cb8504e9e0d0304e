"""`coe add` and `coe remove`: edit the experts of a configuration file, and reload the server that runs with it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import typer

from coe_server.commands.checks import check
from coe_server.commands.experts import server_of
from coe_server.commands.machine_here import look
from coe_server.commands.models_here import FoundModel, models_in_folder
from coe_server.commands.proposal import memory_of, propose, room_of
from coe_server.commands.pull import pull_models
from coe_server.commands.terminal import mistakes_as_sentences
from coe_server.config.edit import with_expert, without_expert
from coe_server.config.file import LONGEST_FILE_BYTES, UnusableYaml, parse_yaml
from coe_server.config.schema import load_config
from coe_server.errors import CoeError, ConfigError, ReloadRefused
from coe_server.system.files import replacing
from coe_server.system.visible import visible

ConfigFile = Annotated[Path, typer.Option("--config", metavar="FILE", help="The configuration to edit.")]
Port = Annotated[int | None, typer.Option(help="Port of the running server. Default: http.port.", min=1)]
AdminKey = Annotated[
    str | None, typer.Option(envvar="COE_ADMIN_KEY", help="Admin key, if the server requires one.", show_default=False)
]
_FILE = Path("serve.yaml")


def add(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="An id on the Hugging Face hub, a folder, a .gguf file, or an endpoint's URL."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The expert's name. Default: from the model's.")] = None,
    config: ConfigFile = _FILE,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the expert, e.g. --set preload=host. Repeatable."
        ),
    ] = None,
    download: Annotated[bool, typer.Option("--pull", help="Download the model first, as `coe pull` does.")] = False,
    port: Port = None,
    admin_key: AdminKey = None,
) -> None:
    """Add an expert to a configuration, and to the server that runs with it, without a restart.

    The entry goes to the end of `experts`; all other lines stay. What `coe validate` refuses is not written. A running
    server reloads the file; if it refuses, the file is as it was. Without one the expert is there at the next start.

    MODEL decides about the engine: a .gguf file gets llama-server (engine: command), an http(s) URL is a remote
    endpoint (give its model with --set model=...), all else is served by vLLM; --set engine=... gives another one.

    Examples:

      coe add Qwen/Qwen2.5-Coder-7B-Instruct --name coder --set args.max_model_len=8192 --pull

      coe add ~/models/gemma-3-4b.gguf --config home.yaml

      coe add https://api.example.com/v1 --name hosted --set model=large --set api_key_env=HOSTED_KEY
    """
    with mistakes_as_sentences():
        entry = entry_of(model, name, settings_of(set_ or ()))
        told = _changed(config, lambda text: with_expert(text, entry), port, admin_key, [entry["name"]] * download)
        typer.echo(f"{visible(str(config))}: expert '{entry['name']}' is added (engine {entry['engine']}).\n{told}")


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The expert's name, as `coe experts` shows it.")],
    config: ConfigFile = _FILE,
    port: Port = None,
    admin_key: AdminKey = None,
) -> None:
    """Remove an expert from a configuration, and from the server that runs with it, without a restart.

    Its entry goes, with the comment lines directly above it; all other lines stay. A running server answers what was
    asked of the expert, then stops its engine; new requests for it get 404. What `coe validate` would refuse is not
    written: first remove the presets, aliases and keys that name it.

    Example: coe remove coder --config home.yaml
    """
    with mistakes_as_sentences():
        told = _changed(config, lambda text: without_expert(text, name), port, admin_key, ())
        typer.echo(f"{visible(str(config))}: expert '{visible(name)}' is removed.\n{told}")


def settings_of(given: Sequence[str]) -> dict[str, Any]:
    """`args.max_model_len=8192` as nested settings. Raises ConfigError."""
    found: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        *path, last = key.split(".")
        if not equals or not all((*path, last)):
            raise ConfigError(f"--set: '{one}' is no KEY=VALUE, e.g. preload=host or args.max_model_len=8192")
        there = found
        for step in path:
            there = there.setdefault(step, {})
            if not isinstance(there, dict):
                raise ConfigError(f"--set: '{step}' is given a value and settings of its own")
        try:
            there[last] = parse_yaml(value, LONGEST_FILE_BYTES) if value else ""
        except UnusableYaml as error:
            raise ConfigError(f"--set {key}: {error}; put the value in quotes") from error
    return found


def entry_of(model: str, name: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The entry in `experts`. Raises ConfigError if a local model cannot be served."""
    place = Path(model).expanduser()
    if model.startswith(("https://", "http://")):
        if "model" not in settings and "engine" not in settings:
            key = f"experts.{name}.model" if name else "model"
            raise ConfigError(f"{key}: is missing; name the model at the endpoint, e.g. --set model=large")
        entry: dict[str, Any] = {"engine": "remote", "base_url": model}
        known_as = str(settings.get("model", model))
    elif place.exists():
        entry = dict(_proposed(place)) if "engine" not in settings else {"model": str(place.absolute())}
        known_as = place.name.removesuffix(".gguf")
    elif model.startswith((".", "/", "~")) or place.suffix == ".gguf":
        raise ConfigError(f"{model}: there is no such file or folder")
    else:
        entry = {"engine": "vllm", "model": model} if settings.get("engine", "vllm") != "simulated" else {}
        known_as = model
    entry.pop("name", None)
    plain = re.sub(r"[^a-z0-9._-]+", "-", known_as.rstrip("/").rpartition("/")[2].lower()).strip("-._")[:64]
    return {"name": name or plain or "model", **_merged(entry, settings)}


def _proposed(place: Path) -> Mapping[str, Any]:
    """The entry that `coe init` would write for a model on this machine."""
    folder = place if place.is_dir() else place.parent
    seen = list(models_in_folder(folder))
    found = [one for one in seen if isinstance(one, FoundModel) and Path(one.model) == place.absolute()]
    if not found:
        why = next((one.why for one in seen if not isinstance(one, FoundModel) and Path(one.place) == place), None)
        raise ConfigError(f"{place}: {why or 'is no .gguf file, and no folder with config.json and weights'}")
    machine = look(os.environ)
    (one,) = propose(found, machine, room_of(machine, memory_of(machine, found)))
    if one.left_out:
        raise ConfigError(f"{place}: {one.left_out}")
    return one.entry


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(under[key], over[key])
        for key in under.keys() & over.keys()
        if isinstance(under[key], Mapping) and isinstance(over[key], Mapping)
    }
    return {**under, **over, **both}


def _changed(
    config: Path, edit: Callable[[str], str], port: int | None, admin_key: str | None, to_pull: Sequence[str]
) -> str:
    """Edit the file, check it as `coe validate` does, put it in place and have the running server reload it.

    Returns what happened with the server. Raises CoeError; then the file is as it was.
    """
    file = config.resolve()  # of a link the file behind it
    before = _text_of(file)
    try:
        after = edit(before)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error
    with NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", suffix=".draft", encoding="utf-8") as draft:
        draft.write(after)
        draft.flush()
        _require_valid(Path(draft.name), config)
        if to_pull:
            pull_models(load_config(Path(draft.name)), to_pull)
    if _text_of(file) != before:
        raise ConfigError(f"{config}: was changed by another program meanwhile, and is left as it is; try again")
    _replace(file, after)
    server = server_of(load_config(file), port, admin_key)
    if not server.answers():
        return f"No server answers at {server.url}; it counts from the next start: coe serve {visible(str(config))}"
    try:
        server.ask("/admin/reload", "POST", None)  # it may take long, and its end decides about the file
    except CoeError as error:
        _replace(file, before)
        raise ReloadRefused(f"{error}\n{config} is as it was") from error
    return f"The server at {server.url} has taken it over; `coe experts {visible(str(config))}` shows it."


def _text_of(file: Path) -> str:
    """With its line ends as they are."""
    try:
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file}: there is no such file; `coe init` writes a first one, --config names another"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8: {error}") from error


def _require_valid(draft: Path, config: Path) -> None:
    """Raise ConfigError with the first mistake that `coe validate` finds in the draft."""
    checked = check(draft, None)
    left_out = checked.plan.found.left_out if checked.plan is not None and not checked.mistakes else {}
    for mistake in (*checked.mistakes, *(f"experts.{name}: {why}" for name, why in left_out.items())):
        told = mistake.removeprefix(f"{draft}: ").replace(str(draft), str(config))
        raise ConfigError(f"{config}: is left as it is, since {told}")


def _replace(file: Path, text: str) -> None:
    """Put the text in the file's place, with its mode and, where that is allowed, its owner."""
    was = file.stat()
    with replacing(file, stat.S_IMODE(was.st_mode)) as out:
        with suppress(PermissionError):
            os.fchown(out.fileno(), was.st_uid, was.st_gid)
        out.write(text)
