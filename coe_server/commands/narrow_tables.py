"""Tables in which no value is cut: what has no room is a whole column, left out and named. Knows no table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

IN_FULL = 10_000  # characters: wider than any table


def table_console() -> Console:
    """Standard output; where it is no terminal, nothing is cut to a width that nobody has."""
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
