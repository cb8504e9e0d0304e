"""`coe init`: a first configuration from what this machine has. Opens no connection, changes nothing that is there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from coe_server.commands.first_file import first_file
from coe_server.commands.machine_here import look
from coe_server.commands.models_here import Skipped, find_models, usual_folders
from coe_server.commands.proposal import Proposed, memory_of, propose, room_of
from coe_server.commands.terminal import mistakes_as_sentences
from coe_server.engines.model_size import hub_cache
from coe_server.errors import ConfigError
from coe_server.system.files import create_private
from coe_server.system.visible import visible


def init(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...", help="Folders with models. Default: ./models and the usual ones of others."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write; one that is there stays as it is.")] = Path(
        "serve.yaml"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file and write nothing.")] = False,
) -> None:
    """Write a first configuration for this machine: its cards, its memory, and the models and engines that are here.

    Looks into the folders, Hugging Face's cache (HF_HUB_CACHE, HF_HOME) and Ollama's store (OLLAMA_MODELS), and on PATH
    for vllm and llama-server. Opens no connection, reads names and headers, runs nothing but `--version`. What cannot
    run here is left out, with the reason beside it.

    Examples: coe init; coe init ~/gguf --out home.yaml; coe init --dry-run
    """
    with mistakes_as_sentences():
        found = first_configuration(folders or (), os.environ)
        typer.echo(found.text if dry_run else write_first_configuration(found, out), nl=not dry_run)


@dataclass(frozen=True, slots=True)
class FirstConfiguration:
    """The text of a serve.yaml, and its experts."""

    text: str
    experts: Sequence[Proposed]
    skipped: Sequence[Skipped]


def first_configuration(folders: Sequence[Path], environment: Mapping[str, str]) -> FirstConfiguration:
    """Inspect the machine, look for models, propose experts, and compose the file."""
    places = list(folders) or usual_folders(environment)
    models, skipped = find_models(places, environment)
    machine = look(environment)
    memory = memory_of(machine, models)
    experts = propose(models, machine, room_of(machine, memory))
    looked_in = [*map(str, places), str(hub_cache(environment)), "Ollama's store"]
    return FirstConfiguration(first_file(machine, memory, experts, skipped, looked_in), experts, skipped)


def write_first_configuration(found: FirstConfiguration, out: Path) -> str:
    """Write the file if the path is free; returns a summary in one or two sentences. Raises ConfigError, OSError."""
    try:
        create_private(out, found.text)
    except FileExistsError as error:
        raise ConfigError(f"--out: {out} already exists and is not changed; give another name, or --dry-run") from error
    left_out = [one for one in found.experts if one.left_out]
    names = ", ".join(one.name for one in found.experts if not one.left_out)
    told = f"{out}: experts {names}." if names else f"{out}: no model can run here yet, so the one expert is simulated."
    if left_out or found.skipped:
        told += f" Left out: {len(left_out)}, passed over: {len(found.skipped)}; the file says why."
    shown = visible(str(out))
    return f"{told}\nNext: coe validate {shown}, then coe serve {shown}"
