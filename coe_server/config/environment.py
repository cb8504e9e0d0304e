"""The environment variables of this process, and which of them are secrets that it keeps for itself."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress

from coe_server.config.types import clean_secret, variables_in

# What every engine gets, be it named by a setting or not: `headers: {X-From: "{env.USER}"}` makes no secret of a name,
# and the hub's token is what an engine downloads its model with.
FOR_EVERY_ENGINE = (
    frozenset(("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD"))
    | frozenset(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
    | frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"))
    | frozenset(("http_proxy", "https_proxy", "all_proxy", "no_proxy"))
    | frozenset(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
)


class Environment:
    """`variables` is `os.environ`, or a mapping in its place."""

    def __init__(self, variables: MutableMapping[str, str]) -> None:
        self._variables = variables
        self._taken_out: dict[str, str] = {}

    def secret(self, key: str, variable: str) -> str:
        """The value of a variable that the setting `key` names, taken out or not, blanks around it left out.

        ConfigError if it is not set, or holds what no header can carry.
        """
        return clean_secret(self._variables.get(variable) or self._taken_out.get(variable), key, variable)

    def take_out(self, names: Iterable[str]) -> None:
        """From now on these are known here alone: no program that we start has them, and /proc shows blanks."""
        for name in names:
            if name in self._variables:
                blank_in_place(name)
                self._taken_out[name] = self._variables.pop(name)

    def without(self, names: Collection[str]) -> dict[str, str]:
        """All that is left, without these names."""
        return {name: value for name, value in self._variables.items() if name not in names}


def secret_variables(settings: Mapping[str, object]) -> frozenset[str]:
    """The variables that settings (as plain values) name, by keys like `api_key_env` or within headers."""
    return frozenset(_named("", settings)) - FOR_EVERY_ENGINE


def _named(key: str, node: object) -> Iterator[str]:
    match node:
        case str():
            yield from [node] if key.endswith("_env") else variables_in(node)
        case Mapping():
            for name, value in node.items():
                yield from _named(str(name), value)
        case list() | tuple():
            for value in node:
                yield from _named(key, value)


def blank_in_place(variable: str) -> None:
    """Overwrite the value of an environment variable where the C library has it; the variable is empty then.

    `unsetenv` forgets where it is and leaves it there. Copies that were made of it before stay what they are.
    """
    start = os.fsencode(variable) + b"="
    with suppress(ValueError, AttributeError, OSError):  # a C library without `environ`
        entries = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
        place = 0
        while address := entries[place]:
            entry = ctypes.string_at(address)
            if entry.startswith(start):
                ctypes.memset(address + len(start), 0, len(entry) - len(start))
            place += 1
