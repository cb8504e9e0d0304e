"""Who may come in, built from settings, key file and environment."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from coe_server.config import ServerConfig, secret_from_environment
from coe_server.errors import ConfigError
from coe_server.http.door.guard import Guard
from coe_server.keys import Key, Keyring, hashed, read_keys

logger = logging.getLogger(__name__)


def build_guard(config: ServerConfig) -> Guard:
    """Who may come in. Raises ConfigError if keys are wrong, or missing on an address that others reach."""
    settings = config.keys
    keys = read_keys(settings.file) if settings.file is not None else ()
    for name, variable, admin in (
        ("api_key_env", settings.api_key_env, False),
        ("admin_key_env", settings.admin_key_env, True),
    ):
        if variable is not None:
            digest = hashed(secret_from_environment(f"keys.{name}", variable))
            keys += (Key(name=f"{name}", sha256=digest, admin=admin, priority=True),)
    _refuse_unknown_names(keys, {expert.name for expert in config.experts})
    if not keys and not config.http.is_loopback:
        if not config.keys.open:
            raise ConfigError(
                f"http.host: '{config.http.host}' can be reached by others and there are no keys; make one "
                "(keys.file, `coe keys add`), or say keys.open: true"
            )
        logger.warning("anybody who reaches %s may use every expert: there are no keys (keys.open)", config.http.host)
    return Guard(Keyring(keys), config.http.is_loopback)


def _refuse_unknown_names(keys: Iterable[Key], experts: Collection[str]) -> None:
    for key in keys:
        if unknown := sorted((key.experts or frozenset()) - set(experts)):
            raise ConfigError(
                f"keys.file: key '{key.name}' may use expert '{unknown[0]}'; the experts are {', '.join(experts)}"
            )
