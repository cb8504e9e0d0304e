"""Compares two configurations for a reload: which keys differ, and which need a restart. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from typing import Any

from coe_server.config.addresses import shown_address
from coe_server.config.schema import ServerConfig
from coe_server.errors import ReloadRefused

# All other keys concern engines, sockets, queues or reserved memory: they need a restart.
LIVE = (
    *("router", "router.*", "keys.*", "log.prompts", "http.max_body", "http.body_seconds", "http.keepalive_seconds"),
    *("http.bodies", "http.max_upload", "http.uploads", "http.allowed_hosts", "aliases.*"),
    *("experts.*.context_tokens", "experts.*.vision", "experts.*.modalities", "experts.*.tools", "experts.*.endpoints"),
)


def live_changes(running: ServerConfig, wanted: ServerConfig) -> tuple[str, ...]:
    """The keys that differ. Raises ReloadRefused if one of them needs a restart."""
    _refuse_other_experts([one.name for one in running.experts], [one.name for one in wanted.experts])
    before, after = dict(_keys("", _plain(running))), dict(_keys("", _plain(wanted)))
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key, _ABSENT) != after.get(key, _ABSENT))
    for key in changed:
        if not any(fnmatchcase(key, pattern) for pattern in LIVE):
            was, now = (_shown(key, side[key]) if key in side else "absent" for side in (before, after))
            raise ReloadRefused(f"{key}: was {was} and is {now} in the file; restart required, nothing was reloaded")
    return tuple(changed)


def _refuse_other_experts(running: Collection[str], wanted: Collection[str]) -> None:
    new, gone = (", ".join(sorted(set(one) - set(other))) for one, other in ((wanted, running), (running, wanted)))
    if new or gone:
        told = "; ".join(f"{word} {names}" for word, names in (("added", new), ("removed", gone)) if names)
        raise ReloadRefused(f"experts changed ({told}); restart required, nothing was reloaded")


def _plain(config: ServerConfig) -> dict[str, Any]:
    """The settings as nested mappings, experts by name."""
    plain = config.model_dump(by_alias=True)  # as the file has the keys
    plain["experts"] = {expert["name"]: expert for expert in plain["experts"]}
    return plain


def _keys(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _keys(f"{prefix}.{key}" if prefix else str(key), value)
    else:
        yield prefix, node


def _shown(key: str, value: Any) -> str:
    """A value for a message, without secrets in headers, variables and the query of an address."""
    if fnmatchcase(key, "experts.*.headers.*") or fnmatchcase(key, "experts.*.environment.*"):
        return "'...'"
    return repr(shown_address(value)) if key.endswith(".base_url") and isinstance(value, str) else repr(value)


_ABSENT = object()
