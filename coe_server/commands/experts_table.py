"""Where the experts of a running server are, as a table for a person: once, or as it changes. Asks over HTTP only."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from coe_server.cache.planner import mib
from coe_server.commands.credentials import bearer
from coe_server.errors import CoeError

_PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.25


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
            with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:
                found: list[dict[str, Any]] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise CoeError(f"{address} answers {error.code}: {_reason(error)}") from error
        except ValueError as error:
            raise CoeError(f"what answers at {self.url} is not this server: /admin/experts is no JSON") from error
        except TimeoutError as error:
            raise CoeError(f"the server at {self.url} says nothing within {_PATIENCE_SECONDS:g} s") from error
        except OSError as error:
            cause = getattr(error, "reason", error)
            why = getattr(cause, "strerror", None) or cause
            raise CoeError(f"no server answers at {self.url} ({why}); `coe serve CONFIG` starts one") from error
        return found


def watch_experts(server: RunningServer, console: Console) -> None:
    """Show the table until Ctrl-C or the server's end; where nobody looks (a file, a pipe), each time it changes."""
    shown = server.experts()
    with suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Live(experts_table(shown), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(_LOOK_SECONDS)
                    live.update(experts_table(server.experts()), refresh=True)
        console.print(experts_table(shown))
        while True:
            time.sleep(_LOOK_SECONDS)
            if (found := server.experts()) != shown:
                console.print(experts_table(found))
            shown = found


def experts_table(found: list[dict[str, Any]]) -> Group:
    """One line for each expert; why one failed stands below, in full."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("expert", "state", "pin"):
        table.add_column(column, no_wrap=True)
    for column in ("device", "host", "leases", "queued"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("last move", no_wrap=True)
    for expert in found:
        table.add_row(
            *(escape(expert["name"]), _state(expert), expert["pin"] or ""),
            *(mib(expert["bytes"]["device"]), mib(expert["bytes"]["host"])),
            *(str(expert["leases"]), str(expert["queued"])),
            _move(expert["last_move"]),
        )
    failures = [f"[red]{escape(one['name'])} failed:[/red] {escape(one['failure'])}" for one in found if one["failure"]]
    return Group(table, *failures)


def _state(expert: dict[str, Any]) -> str:
    """A remote expert is always at hand and takes nothing here."""
    state = "remote" if expert["residency"] == "remote" and expert["state"] == "device" else str(expert["state"])
    return f"[red]{state}[/red]" if state == "failed" else state


def _move(move: dict[str, Any] | None) -> str:
    return f"{move['from']} -> {move['to']}, {move['seconds']:.2f} s" if move else ""


def _reason(error: urllib.error.HTTPError) -> str:
    """What a person can do about it, or the server's own sentence."""
    if error.code in {401, 403, 404}:
        return "it takes an admin key (COE_ADMIN_KEY), or none on a loopback address"
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
