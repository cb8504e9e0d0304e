"""Compares two configurations for a reload: which keys differ, which experts come, change or go, and what needs a
restart of the server. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from coe_server.config.schema import ServerConfig
from coe_server.engines.settings import ExpertSettings
from coe_server.errors import ReloadRefused

# All other keys concern sockets, queues or reserved memory: they need a restart of the server.
LIVE = (
    *("router", "router.*", "keys.*", "log.prompts", "http.max_body", "http.body_seconds", "http.keepalive_seconds"),
    *("http.bodies", "http.max_upload", "http.uploads", "http.allowed_hosts", "aliases.*", "experts.*"),
)

# Keys of an expert that its engine does not depend on. A change of any other one restarts the engine.
READ_BY_REQUESTS = frozenset(("context_tokens", "vision", "modalities", "tools", "endpoints"))
READ_BY_THE_CACHE = frozenset(("pin", "preload", "ttl_seconds"))


@dataclass(frozen=True, slots=True)
class ExpertChanges:
    """The names of experts that come, go or change, each list in the order of its configuration."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()  # their engines start anew; `adjusted` ones go on
    adjusted: tuple[str, ...] = ()
    regrouped: tuple[str, ...] = ()  # bases that only get or lose adapters: whether they restart is for `build/` to see

    def as_json(self) -> dict[str, list[str]]:
        return {word: list(getattr(self, word)) for word in ("added", "removed", "restarted", "adjusted")}


def live_changes(running: ServerConfig, wanted: ServerConfig) -> tuple[str, ...]:
    """The keys that differ; an expert that comes or goes counts as one. Raises ReloadRefused if one needs a restart."""
    news = expert_changes(running, wanted)
    whole = (*news.added, *news.removed)
    before, after = (dict(_keys("", _plain(one, without=whole))) for one in (running, wanted))
    changed = {key for key in before.keys() | after.keys() if before.get(key, _ABSENT) != after.get(key, _ABSENT)}
    for key in sorted(changed):
        if not any(fnmatchcase(key, pattern) for pattern in LIVE):
            was, now = (repr(side[key]) if key in side else "absent" for side in (before, after))
            raise ReloadRefused(f"{key}: was {was} and is {now} in the file; restart required, nothing was reloaded")
    return tuple(sorted(changed | {f"experts.{name}" for name in whole}))


def expert_changes(running: ServerConfig, wanted: ServerConfig) -> ExpertChanges:
    """What a reload does to experts. Raises ReloadRefused for one that gets an engine of its own, or loses it."""
    before, after = _by_name(running), _by_name(wanted)
    kept = [name for name in after if name in before]
    differ = {name: _differences(before[name], after[name]) for name in kept}
    for name in kept:
        if (before[name].base is None) != (after[name].base is None):
            raise ReloadRefused(
                f"experts.{name}: was engine {before[name].engine} and is {after[name].engine} in the file; remove it"
                " in one reload and add it in the next, nothing was reloaded"
            )
    added = tuple(name for name in after if name not in before)
    removed = tuple(name for name in before if name not in after)
    restarted = {name for name in kept if differ[name] - READ_BY_REQUESTS - READ_BY_THE_CACHE}
    restarted = {name for name in restarted if after[name].base is None}
    regrouped = set[str]()
    for side, names in ((before, (*removed, *kept)), (after, (*added, *kept))):
        for name in names:
            one, base = side[name], side[name].base
            if one.launched_by_base and base in kept and differ.get(name, {"name"}) - READ_BY_REQUESTS:
                (restarted if name in kept else regrouped).add(base)
    return ExpertChanges(
        added,
        removed,
        tuple(name for name in kept if name in restarted),
        tuple(name for name in kept if differ[name] and name not in restarted),
        tuple(name for name in kept if name in regrouped and name not in restarted),
    )


def restarting(news: ExpertChanges, bases: Collection[str], order: Collection[str]) -> ExpertChanges:
    """The same where these bases cannot take their adapters while they run. `order`: all names."""
    restarted = {*news.restarted, *bases}
    return replace(
        news,
        restarted=tuple(name for name in order if name in restarted),
        adjusted=tuple(name for name in news.adjusted if name not in restarted),
        regrouped=tuple(name for name in news.regrouped if name not in restarted),
    )


def _by_name(config: ServerConfig) -> dict[str, ExpertSettings]:
    return {expert.name: expert for expert in config.experts}


def _differences(one: ExpertSettings, other: ExpertSettings) -> set[str]:
    """The keys of an expert that differ."""
    before, after = one.model_dump(), other.model_dump()
    return {key for key in before.keys() | after.keys() if before.get(key, _ABSENT) != after.get(key, _ABSENT)}


def _plain(config: ServerConfig, without: Collection[str]) -> dict[str, Any]:
    """The settings as nested mappings, experts by name, `without` these."""
    plain = config.model_dump(by_alias=True)  # as the file has the keys
    plain["experts"] = {one["name"]: one for one in plain["experts"] if one["name"] not in without}
    return plain


def _keys(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _keys(f"{prefix}.{key}" if prefix else str(key), value)
    else:
        yield prefix, node


_ABSENT = object()
