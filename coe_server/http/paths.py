"""Which paths an application has, and which one a wrong path probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from starlette.routing import BaseRoute, Match, Route

from coe_server.http.auth import CLIENTS_PREFIX

_OLLAMAS = frozenset(  # its own API, that some clients try first
    f"/api/{word}" for word in ("tags", "chat", "generate", "version", "show", "ps", "pull", "embed")
)
MOST_LEFT_OUT = 4  # parts of a path: /openai/deployments/NAME/chat/completions is what some clients make of an address
_LONGEST_MISSPELLED = 60  # characters: comparing takes quadratic time
_ALIKE = 0.85  # of difflib's ratio: one or two wrong characters
_ANYTHING = "\0"  # matches no declared part


class Paths:
    """The paths of an application's `routes`, and a suggestion for a wrong path."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes

    def has(self, path: str) -> bool:
        """True if an endpoint has this path, with any method."""
        asked = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        return any(route.matches(asked)[0] is not Match.NONE for route in self._routes)

    def declared(self, path: str) -> str | None:
        """The declared path with a star for each parameter; None without an endpoint."""
        if not self.has(path):
            return None
        parts = path.split("/")
        for at in range(1, len(parts)):
            if self.has("/".join([*parts[:at], _ANYTHING, *parts[at + 1 :]])):
                parts[at] = "*"
        return "/".join(parts)

    def advice(self, path: str) -> str:
        """What a client that asked for the wrong `path` can do."""
        meant = self.meant(path)
        if meant is not None:
            return f"did you mean {meant}?"
        if path in _OLLAMAS:
            return f"Ollama's own API is not served; use OpenAI's, under {CLIENTS_PREFIX[:-1]}"
        return "GET /openapi.json lists the paths"

    def meant(self, path: str) -> str | None:
        """The path under /v1 that a client with a wrong base address, or a misspelling, probably meant."""
        parts = path.strip("/").split("/", MOST_LEFT_OUT)
        guesses = [CLIENTS_PREFIX + "/".join(parts[start:]) for start in range(len(parts))]
        found = (guess for guess in guesses if self.has(guess))
        return next(found, None) or self._similar([path, *guesses])

    def _similar(self, paths: Sequence[str]) -> str | None:
        declared = [one.path for one in self._routes if isinstance(one, Route)]
        known = [path for path in declared if path.startswith(CLIENTS_PREFIX) and "{" not in path]
        for path in paths:
            if len(path) <= _LONGEST_MISSPELLED:
                for near in difflib.get_close_matches(path, known, n=1, cutoff=_ALIKE):
                    return near
        return None
