"""Shared by the commands: the argument CONFIG, errors as one sentence with an exit code, tables, keys as headers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from coe_server.errors import ArtifactError, CoeError, ConfigError, DatasetError
from coe_server.system.visible import visible_lines

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file; `coe config --example serve` explains every key.")
]


@contextmanager
def mistakes_as_sentences() -> Iterator[None]:
    """Print an error as one sentence and exit: code 2 for invalid input, 1 for other known errors and OSError."""
    try:
        yield
    except (ConfigError, ArtifactError, DatasetError) as error:
        tell(error)
        raise typer.Exit(2) from error
    except CoeError as error:
        tell(error)
        raise typer.Exit(1) from error
    except BrokenPipeError:  # the reader of the output closed it: exit silently
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        tell(f"{where}{error.strerror or error}")
        raise typer.Exit(1) from error


def tell(told: object) -> None:
    """Print one line on standard error, escaped, independent of the log's settings."""
    print(visible_lines(f"coe: {told}"), file=sys.stderr)  # noqa: T201


IN_FULL = 10_000  # characters: wider than any table


def table_console() -> Console:
    """Standard output. Nothing is truncated if it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=IN_FULL)


def that_fits(
    table: Callable[[Sequence[str]], Table], columns: Sequence[str], tell_least: Iterable[str], width: int
) -> tuple[Table, list[str]]:
    """The table with the columns that fit into `width` characters, and those left out, in the order of `tell_least`."""
    kept = list(columns)
    for name in tell_least:
        if Console(width=IN_FULL).measure(table(kept)).maximum <= width:
            break
        kept.remove(name)
    return table(kept), [name for name in columns if name not in kept]


def no_room_for(left_out: Sequence[str]) -> list[str]:
    """A line that names the columns left out; empty if there are none."""
    return [f"[dim]Not shown: {', '.join(left_out)}; --json has all columns.[/dim]"] if left_out else []


def bearer(option: str, key: str | None) -> dict[str, str]:
    """The Authorization header; empty without a key. Surrounding blanks are removed.

    Raises ConfigError, without showing the key, if it is not valid in a header.
    """
    key = (key or "").strip()
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{option}: the key has other characters than printable ASCII")
    return {"authorization": f"Bearer {key}"}
