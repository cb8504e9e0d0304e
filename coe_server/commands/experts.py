"""`coe experts`: the experts of a running server as a table, once or refreshed. Uses HTTP only."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from coe_server.cache.tiers import mib
from coe_server.commands.terminal import (
    ConfigPath,
    bearer,
    mistakes_as_sentences,
    no_room_for,
    table_console,
    that_fits,
)
from coe_server.config.addresses import host_and_port
from coe_server.config.schema import ServerConfig, load_config
from coe_server.errors import CoeError, ConfigError
from coe_server.system.visible import visible, visible_lines

_TIMEOUT_SECONDS = 10.0
_LOOK_SECONDS = 0.25
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through HTTP_PROXY


def experts(
    config: ConfigPath,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh four times a second until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON of GET /admin/experts and nothing else.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port of the server. Default: http.port.", min=1)] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="COE_ADMIN_KEY", help="Admin key, if the server requires one.", show_default=False),
    ] = None,
) -> None:
    """Show where the experts of a running server are: state, bytes, users, queue and last move; and what each card
    holds, where there are several.

    A narrow terminal gets fewer columns, a file or a pipe all of them.

    Examples: coe experts serve.yaml; coe experts serve.yaml --watch
    """
    with mistakes_as_sentences():
        settings = load_config(config)
        server = server_of(settings, port, admin_key)
        console = table_console()
        if as_json and watch:
            raise ConfigError("--json and --watch exclude each other; give one of them")
        if as_json:
            typer.echo(json.dumps(server.experts(), indent=1))
        elif watch:
            watch_experts(server, console)
        else:
            console.print(experts_table(server.look(), console.width))


@dataclass(frozen=True, slots=True)
class Seen:
    """The experts as `GET /admin/experts` has them; each card's bytes and a front's nodes as `GET /admin/overview`."""

    experts: list[dict[str, Any]]
    cards: list[dict[str, int]]
    nodes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """The server at `url`, which may not be running; `admin_key` if it requires one.

    `certificate`: its own, for https.
    """

    url: str
    admin_key: str | None = None
    certificate: Path | None = None

    def experts(self) -> list[dict[str, Any]]:
        """The answer of `GET /admin/experts`. Raises CoeError if no server, or another program, answers."""
        found: list[dict[str, Any]] = self._json("/admin/experts")
        return found

    def look(self) -> Seen:
        """Experts and cards. Raises CoeError as `experts` does."""
        overview = self._json("/admin/overview")
        return Seen(self.experts(), overview["tiers"]["device"]["cards"], overview.get("nodes", []))

    def nodes(self) -> list[dict[str, Any]]:
        """The answer of `GET /admin/nodes` of a front. Raises CoeError as `experts` does."""
        found: list[dict[str, Any]] = self._json("/admin/nodes")
        return found

    def answers(self) -> bool:
        """True if a server is there."""
        try:
            return bool(self._json("/healthz") == {"status": "ok"})
        except CoeError:
            return False

    def tell(self, path: str) -> dict[str, Any]:
        """The answer of a POST without a body. Raises CoeError with the server's reason."""
        return self.ask(path, "POST")

    def ask(self, path: str, method: str, within_seconds: float | None = _TIMEOUT_SECONDS) -> dict[str, Any]:
        """The answer of any path, however late if `within_seconds` is None. Raises CoeError with the reason."""
        found: dict[str, Any] = self._json(path, method, within_seconds)
        return found

    def _opener(self) -> urllib.request.OpenerDirector:
        if self.certificate is None:
            return _DIRECTLY
        context = ssl.create_default_context(cafile=self.certificate)
        context.check_hostname = False  # it is this very certificate, whatever name the address has
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # and not that of the authority that signed it
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        return urllib.request.build_opener(*handlers)

    def learning(self) -> dict[str, Any] | None:
        """The answer of `GET /admin/learning`. Raises CoeError as `experts` does."""
        found: dict[str, Any] | None = self._json("/admin/learning")
        return found

    def undo_learning(self) -> dict[str, Any]:
        """Undo the last step of learning. Raises CoeError as `experts` does."""
        found: dict[str, Any] = self._json("/admin/learning/undo", "POST")
        return found

    def _json(self, path: str, method: str = "GET", within_seconds: float | None = _TIMEOUT_SECONDS) -> Any:
        address = f"{self.url}{path}"
        request = urllib.request.Request(address, headers=bearer("--admin-key", self.admin_key), method=method)
        try:
            with self._opener().open(request, timeout=within_seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise CoeError(f"{address} answers {error.code}: {_reason(error)}") from error
        except ValueError as error:
            raise CoeError(f"{address} does not answer with JSON; is it another program's port?") from error
        except TimeoutError as error:
            raise CoeError(f"the server at {self.url} did not answer within {_TIMEOUT_SECONDS:g} s") from error
        except OSError as error:
            cause = getattr(error, "reason", error)
            why = getattr(cause, "strerror", None) or cause
            raise CoeError(f"no server answers at {self.url} ({why}); `coe serve CONFIG` starts one") from error


def server_of(settings: ServerConfig, port: int | None, admin_key: str | None) -> RunningServer:
    """The server that these settings start."""
    tls, where = settings.http.tls, host_and_port(settings.http.host, port or settings.http.port)
    url = f"{'http' if tls is None else 'https'}://{where}"
    return RunningServer(url, admin_key, None if tls is None else tls.certificate)


def watch_experts(server: RunningServer, console: Console) -> None:
    """Show the table until Ctrl-C or until the server ends. Into a file or pipe, print it on each change."""
    shown = server.look()
    with suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Live(experts_table(shown, console.width), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(_LOOK_SECONDS)
                    live.update(experts_table(server.look(), console.width), refresh=True)
        console.print(experts_table(shown, console.width))
        while True:
            time.sleep(_LOOK_SECONDS)
            if (found := server.look()) != shown:
                console.print(experts_table(found, console.width))
            shown = found


def experts_table(seen: Seen, width: int) -> Group:
    """One line for each expert, in `width` characters; then the cards where there are several; why an expert failed
    stands below, in full.

    Columns that do not fit are left out, those that tell least first, and named below.
    """
    found, several = seen.experts, len(seen.cards) > 1
    none_pinned = all(not expert["pin"] for expert in found)
    tell_least = dict.fromkeys((*(("pin",) if none_pinned else ()), *_TELL_LEAST))
    has_bases = any(expert.get("base") for expert in found)
    needed_columns = (("cards", several), ("base", has_bases), ("nodes", bool(seen.nodes)))
    left = {name for name, needed in needed_columns if not needed}
    columns = tuple(name for name in _COLUMNS if name not in left)
    table, left_out = that_fits(partial(_table, found), columns, filter(columns.__contains__, tell_least), width)
    missing = [name for name in left_out if not (name == "pin" and none_pinned)]
    failures = [_failure(one) for one in found if one["failure"]]
    if seen.nodes:
        return Group(table, *no_room_for(missing), "", _nodes_table(seen.nodes), *failures)
    if not several:
        return Group(table, *no_room_for(missing), *failures)
    return Group(table, *no_room_for(missing), "", _cards_table(seen), *failures)


def _cards_table(seen: Seen) -> Table:
    """One line for each card: its bytes, whose they are, and what sleepers keep."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("card", "used", "free", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("loaded", overflow="fold")
    table.add_column("asleep", overflow="fold")
    for index, card in enumerate(seen.cards):
        here = [(expert, _bytes_on(expert, index)) for expert in seen.experts if _bytes_on(expert, index)]
        loaded = [_shown(expert["name"]) for expert, _ in here if not _is_asleep(expert)]
        asleep = [(_shown(expert["name"]), size) for expert, size in here if _is_asleep(expert)]
        kept = f"{', '.join(name for name, _ in asleep)}: {mib(sum(size for _, size in asleep))}" if asleep else ""
        sizes = (card["used"], max(0, card["capacity"] - card["used"]), card["capacity"])
        table.add_row(str(index), *map(mib, sizes), ", ".join(loaded), kept)
    return table


def _nodes_table(nodes: list[dict[str, Any]]) -> Table:
    """One line for each node: whether it gets requests, its device memory, and what it speaks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("node", "requests", "used", "limit", "version"):
        table.add_column(name, overflow="fold", justify="right" if name in {"used", "limit"} else "left")
    for node in nodes:
        used, limit = (sum(card[key] for card in node["cards"]) for key in ("used", "capacity"))
        state = f"{node['in_flight']} in progress" if node["usable"] else f"[red]none:[/red] {_shown(node['why'])}"
        table.add_row(_shown(node["name"]), state, mib(used), mib(limit), _shown(node["version"] or ""))
    return table


def _bytes_on(expert: dict[str, Any], index: int) -> int:
    return sum(card["bytes"] for card in expert["cards"] if card["index"] == index)


def _is_asleep(expert: dict[str, Any]) -> bool:
    return bool(expert["residency"] == "host" and expert["state"] != "starting")


def _failure(expert: dict[str, Any]) -> str:
    """The whole failure; further lines are indented, so that none looks like a row."""
    told = visible_lines(str(expert["failure"])).replace("\n", "\n    ")
    return f"[red]{_shown(expert['name'])} failed:[/red] {escape(told)}"


def _shown(word: object) -> str:
    """A server's text without control characters and without markup."""
    return escape(visible(str(word)))


def _table(found: list[dict[str, Any]], columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in _NUMBERS else "left")
    for expert in found:
        table.add_row(*(_COLUMNS[name](expert) for name in columns))
    return table


def _state(expert: dict[str, Any]) -> str:
    """The state shown; a remote expert has no tier here."""
    state = "remote" if expert["residency"] == "remote" and expert["state"] == "device" else _shown(expert["state"])
    return f"[red]{state}[/red]" if state == "failed" else state


def _move(move: dict[str, Any] | None) -> str:
    return f"{_shown(move['from'])} -> {_shown(move['to'])}, {move['seconds']:.2f} s" if move else ""


def _reason(error: urllib.error.HTTPError) -> str:
    """What to do, or the server's own error message."""
    if error.code in {401, 403}:
        return "it requires an admin key (COE_ADMIN_KEY), or none on a loopback address"
    try:
        return visible(str(json.load(error)["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return visible(str(error.reason))


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "expert": lambda expert: _shown(expert["name"]),
    "base": lambda expert: _shown(expert.get("base") or ""),
    "state": _state,
    "pin": lambda expert: _shown(expert["pin"] or ""),
    "cards": lambda expert: ", ".join(_shown(card["index"]) for card in expert["cards"]),
    "nodes": lambda expert: ", ".join(
        f"{_shown(one['name'])} ({_shown(one['residency'])})" for one in expert.get("nodes", ())
    ),
    "device": lambda expert: mib(expert["bytes"]["device"]),
    "host": lambda expert: mib(expert["bytes"]["host"]),
    "leases": lambda expert: _shown(expert["leases"]),
    "queued": lambda expert: _shown(expert["queued"]),
    "last move": lambda expert: _move(expert["last_move"]),
}
_NUMBERS = frozenset({"device", "host", "leases", "queued"})
_TELL_LEAST = ("last move", "pin", "host", "leases", "cards")
