"""What commands share: errors as one sentence with an exit code, tables whose values are never cut, keys as headers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.table import Table

from coe_server.errors import ArtifactError, CoeError, ConfigError, DatasetError
from coe_server.system.visible import visible_lines


@contextmanager
def mistakes_as_sentences() -> Iterator[None]:
    """Exit code 2 for a mistake in what was given, 1 for anything else we name or the file system refuses."""
    try:
        yield
    except (ConfigError, ArtifactError, DatasetError) as error:
        tell(error)
        raise typer.Exit(2) from error
    except CoeError as error:
        tell(error)
        raise typer.Exit(1) from error
    except BrokenPipeError:  # the reader of our output left: the command ends silently
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        tell(f"{where}{error.strerror or error}")
        raise typer.Exit(1) from error


def tell(told: object) -> None:
    """One line on standard error, independent of the log's settings; it may quote a server."""
    print(visible_lines(f"coe: {told}"), file=sys.stderr)  # noqa: T201


IN_FULL = 10_000  # characters: wider than any table


def table_console() -> Console:
    """Standard output; where it is no terminal, nothing is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=IN_FULL)


def that_fits(
    table: Callable[[Sequence[str]], Table], columns: Sequence[str], tell_least: Iterable[str], width: int
) -> tuple[Table, list[str]]:
    """The table of as many columns as `width` characters hold, and those left out; first go those that tell least."""
    kept = list(columns)
    for name in tell_least:
        if Console(width=IN_FULL).measure(table(kept)).maximum <= width:
            break
        kept.remove(name)
    return table(kept), [name for name in columns if name not in kept]


def no_room_for(left_out: Sequence[str]) -> list[str]:
    """The line that names the columns left out, if any."""
    return [f"[dim]No room for: {', '.join(left_out)}. --json has it all.[/dim]"] if left_out else []


def bearer(option: str, key: str | None) -> dict[str, str]:
    """The header to send, none without a key; blanks around a key are left out.

    Raises ConfigError for what no header can carry; the key is not shown.
    """
    key = (key or "").strip()
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{option}: a key is printable ASCII in one line; this one has something else in it")
    return {"authorization": f"Bearer {key}"}
