"""Builds the guard of all requests: keys and host names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator

from coe_server.config.addresses import canonical_host
from coe_server.config.schema import ServerConfig
from coe_server.errors import ConfigError
from coe_server.http.auth import Guard
from coe_server.http.browsers import Hosts
from coe_server.keys import Key, Keyring, hashed, read_keys

logger = logging.getLogger(__name__)


_ADMIN, _SCRAPE, _NODE = "admin_key_env", "scrape_key_env", "node_key_env"


def build_guard(config: ServerConfig) -> Guard:
    """The guard of all requests. Raises ConfigError if keys are invalid, or missing on a non-loopback address."""
    settings = config.keys
    keys = read_keys(settings.file) if settings.file is not None else ()
    keys += tuple(_keys_of_environment(config, {key.name for key in keys}))
    if not config.has_nodes:  # a front learns names from its nodes
        _refuse_unknown_names(keys, {expert.name for expert in config.experts})
    if not keys and not config.http.is_loopback:
        if not config.keys.open:
            raise ConfigError(
                f"http.host: '{config.http.host}' can be reached from other machines and there are no keys; create one "
                "(keys.file, `coe keys add`), or set keys.open: true"
            )
        logger.warning("no keys (keys.open): every client that reaches %s may use every expert", config.http.host)
    return Guard(Keyring(keys), config.http.is_loopback, _hosts(config))


def _hosts(config: ServerConfig) -> Hosts:
    bound = canonical_host(config.http.host)
    return Hosts(frozenset((bound, *config.http.allowed_hosts)), any_for_clients=config.keys.open)


def _keys_of_environment(config: ServerConfig, taken: Collection[str]) -> Iterator[Key]:
    """The keys set by environment variables. Each has the name of its setting, which the decision log records."""
    settings = config.keys
    for name, variable in (
        ("api_key_env", settings.api_key_env),
        (_ADMIN, settings.admin_key_env),
        (_SCRAPE, settings.scrape_key_env),
        (_NODE, settings.node_key_env),
    ):
        if variable is None:
            continue
        if name in taken:
            raise ConfigError(f"keys.{name}: keys.file has a key with the name '{name}'; rename that key")
        secret = config.environment.secret(f"keys.{name}", variable)
        if not secret.isascii():
            raise ConfigError(
                f"keys.{name}: the environment variable '{variable}' has a character beyond ASCII, which clients send "
                "in different encodings; set another key"
            )
        digest = hashed(secret)
        is_admin, is_scrape, is_node = (name == kind for kind in (_ADMIN, _SCRAPE, _NODE))
        yield Key(name=name, sha256=digest, admin=is_admin, scrape=is_scrape, node=is_node, priority=not is_scrape)


def _refuse_unknown_names(keys: Iterable[Key], experts: Collection[str]) -> None:
    for key in keys:
        if unknown := sorted((key.experts or frozenset()) - set(experts)):
            raise ConfigError(
                f"keys.file: key '{key.name}' may use expert '{unknown[0]}'; the experts are {', '.join(experts)}"
            )
