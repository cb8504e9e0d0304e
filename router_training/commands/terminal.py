"""Shared by the commands: errors as one sentence with an exit code, the console, bars, and embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer
from rich.console import Console
from rich.progress import track as rich_track

from coe_server.errors import CoeError, ConfigError
from coe_server.routing.artifact import Artifact
from coe_server.system.interruption import EXIT_INTERRUPTED
from coe_server.system.visible import visible
from router_training.config import read_config

if TYPE_CHECKING:
    from router_training.data.embeddings import Prepare

Item = TypeVar("Item")

EXIT_PROBE_FAILED, EXIT_WRONG_INPUT, EXIT_REFUSED, EXIT_INCOMPLETE = 1, 2, 3, 4

console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

# import names of the packages in the extra `train`
EXTRA = {name: name for name in ("matplotlib", "pyarrow", "regex", "scipy")} | {"sklearn": "scikit-learn"}


@contextmanager
def mistakes_as_sentences() -> Iterator[None]:
    """Run the command. A user's mistake and Ctrl-C end it with one sentence and an exit code."""
    try:
        yield
    except CoeError as error:
        _refuse(str(error))
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        _refuse(f"{EXTRA[package]} is not installed: it comes with the extra `train` (docs/upgrade.md)")
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except BrokenPipeError:  # the reader closed the pipe: end silently
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _refuse(f"{where}{error.strerror or error}")
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except KeyboardInterrupt as error:
        console.print("interrupted; nothing was written")
        raise typer.Exit(EXIT_INTERRUPTED) from error


def _refuse(told: str) -> None:
    console.print(visible(f"coe-train: {told}"), style="red", markup=False)


def with_progress_bar(items: Sequence[Item], what: str) -> Iterable[Item]:
    return rich_track(items, what, console=console, transient=True, disable=not console.is_terminal)


def preparation(artifact: Artifact, config: Path | None) -> Prepare:
    """How prompts get the embeddings that the artifact needs. Raises ConfigError without a training config for it."""
    from router_training.data.embeddings import nothing_to_embed, with_embeddings

    features = artifact.manifest.features
    if not features.embedded_before_routing:
        return nothing_to_embed
    if config is None:
        raise ConfigError(f"this artifact needs embeddings by {features.model!r}: name its training config (--config)")
    settings, normalisation = read_config(config).features, features.normalisation
    return partial(with_embeddings, settings=settings, track=with_progress_bar, normalisation=normalisation)
