"""Where the experts of a running server are, as a table for a person: once, or as it changes. Asks over HTTP only."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from coe_server.cache.planner import mib
from coe_server.commands.terminal import bearer, no_room_for, that_fits
from coe_server.errors import CoeError
from coe_server.system.visible import visible, visible_lines

_TIMEOUT_SECONDS = 10.0
_LOOK_SECONDS = 0.25
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through HTTP_PROXY


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that may be there, at `url`; `admin_key` for one that asks for it."""

    url: str
    admin_key: str | None = None

    def experts(self) -> list[dict[str, Any]]:
        """What `GET /admin/experts` says. Raises CoeError with the reason if nothing or something else answers."""
        address = f"{self.url}/admin/experts"
        request = urllib.request.Request(address, headers=bearer("--admin-key", self.admin_key))
        try:
            with _DIRECTLY.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                found: list[dict[str, Any]] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise CoeError(f"{address} answers {error.code}: {_reason(error)}") from error
        except ValueError as error:
            raise CoeError(f"what answers at {self.url} is not this server: /admin/experts is no JSON") from error
        except TimeoutError as error:
            raise CoeError(f"the server at {self.url} did not answer within {_TIMEOUT_SECONDS:g} s") from error
        except OSError as error:
            cause = getattr(error, "reason", error)
            why = getattr(cause, "strerror", None) or cause
            raise CoeError(f"no server answers at {self.url} ({why}); `coe serve CONFIG` starts one") from error
        return found


def watch_experts(server: RunningServer, console: Console) -> None:
    """Show the table until Ctrl-C or the server's end; into a file or pipe, each time it changes."""
    shown = server.experts()
    with suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Live(experts_table(shown, console.width), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(_LOOK_SECONDS)
                    live.update(experts_table(server.experts(), console.width), refresh=True)
        console.print(experts_table(shown, console.width))
        while True:
            time.sleep(_LOOK_SECONDS)
            if (found := server.experts()) != shown:
                console.print(experts_table(found, console.width))
            shown = found


def experts_table(found: list[dict[str, Any]], width: int) -> Group:
    """One line for each expert, in `width` characters; why one failed stands below, in full.

    Columns that do not fit are left out, those that tell least first, and named below.
    """
    none_pinned = all(not expert["pin"] for expert in found)
    tell_least = dict.fromkeys((*(("pin",) if none_pinned else ()), *_TELL_LEAST))
    columns = tuple(name for name in _COLUMNS if name != "cards" or _several_cards(found))
    table, left_out = that_fits(partial(_table, found), columns, filter(columns.__contains__, tell_least), width)
    missing = [name for name in left_out if not (name == "pin" and none_pinned)]
    return Group(table, *no_room_for(missing), *(_failure(one) for one in found if one["failure"]))


def _failure(expert: dict[str, Any]) -> str:
    """In full; what looks like a row of the table is indented."""
    told = visible_lines(str(expert["failure"])).replace("\n", "\n    ")
    return f"[red]{_shown(expert['name'])} failed:[/red] {escape(told)}"


def _shown(word: object) -> str:
    """What a server says: nothing in it colours, moves or links anything here."""
    return escape(visible(str(word)))


def _table(found: list[dict[str, Any]], columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in _NUMBERS else "left")
    for expert in found:
        table.add_row(*(_COLUMNS[name](expert) for name in columns))
    return table


def _state(expert: dict[str, Any]) -> str:
    """A remote expert is always at hand and takes nothing here."""
    state = "remote" if expert["residency"] == "remote" and expert["state"] == "device" else _shown(expert["state"])
    return f"[red]{state}[/red]" if state == "failed" else state


def _several_cards(found: list[dict[str, Any]]) -> bool:
    return any(card["index"] for expert in found for card in expert["cards"])


def _move(move: dict[str, Any] | None) -> str:
    return f"{_shown(move['from'])} -> {_shown(move['to'])}, {move['seconds']:.2f} s" if move else ""


def _reason(error: urllib.error.HTTPError) -> str:
    """What to do about it, or the server's own sentence."""
    if error.code in {401, 403, 404}:
        return "it requires an admin key (COE_ADMIN_KEY), or none on a loopback address"
    try:
        return visible(str(json.load(error)["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return visible(str(error.reason))


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "expert": lambda expert: _shown(expert["name"]),
    "state": _state,
    "pin": lambda expert: _shown(expert["pin"] or ""),
    "cards": lambda expert: _shown(", ".join(str(card["index"]) for card in expert["cards"])),
    "device": lambda expert: mib(expert["bytes"]["device"]),
    "host": lambda expert: mib(expert["bytes"]["host"]),
    "leases": lambda expert: _shown(expert["leases"]),
    "queued": lambda expert: _shown(expert["queued"]),
    "last move": lambda expert: _move(expert["last_move"]),
}
_NUMBERS = frozenset({"device", "host", "leases", "queued"})
_TELL_LEAST = ("last move", "pin", "host", "leases", "cards")
