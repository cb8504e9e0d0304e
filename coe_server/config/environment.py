"""The environment variables of this process, and the secrets among them, which child processes do not get."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from urllib.parse import unquote

from coe_server.config.types import clean_secret, variables_in

# Never secrets, even if a setting names them: `headers: {X-From: "{env.USER}"}` does not make the user's name secret,
# and engines need the hub's token to download their model.
FOR_EVERY_ENGINE = (
    frozenset(("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD"))
    | frozenset(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
    | frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"))
    | frozenset(("http_proxy", "https_proxy", "all_proxy", "no_proxy"))
    | frozenset(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
)


class Environment:
    """Access to `variables`: `os.environ`, or a mapping in tests."""

    def __init__(self, variables: MutableMapping[str, str]) -> None:
        self._variables = variables
        self._taken_out: dict[str, str] = {}

    def secret(self, key: str, variable: str) -> str:
        """The value, without surrounding blanks, of a variable named by the setting `key`, even if taken out.

        Raises ConfigError if it is not set or is invalid in a header.
        """
        return clean_secret(self._variables.get(variable) or self._taken_out.get(variable), key, variable)

    def take_out(self, names: Iterable[str]) -> None:
        """Keep these variables only here: child processes do not inherit them, and /proc shows blanks."""
        for name in names:
            if name in self._variables:
                blank_in_place(name)
                self._taken_out[name] = self._variables.pop(name)

    def without(self, names: Collection[str]) -> dict[str, str]:
        """The remaining variables, without these names."""
        return {name: value for name, value in self._variables.items() if name not in names}


def secret_variables(settings: Mapping[str, object]) -> frozenset[str]:
    """The variables named in settings (plain values): by keys such as `api_key_env`, or in headers."""
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
    """Overwrite the value of an environment variable in the C library's memory; the variable is then empty.

    `unsetenv` alone would leave the value in memory. Earlier copies are not changed.
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


# Read by OpenTelemetry's SDK when tracing is built.
TRACING_SECRETS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")


def check_tracing_headers() -> None:
    """Raise ConfigError if a header for traces is invalid: every export would fail."""
    for variable in TRACING_SECRETS:
        for header in os.environ.get(variable, "").split(","):
            name, _, value = header.partition("=")
            if value.strip():
                clean_secret(unquote(value), f"tracing: header '{name.strip()}'", variable)
