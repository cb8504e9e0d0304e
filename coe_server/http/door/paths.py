"""Which paths there are, and which of them was meant by one that there is not. Knows nothing of who may ask."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match

from coe_server.http.door.guard import CLIENTS_PREFIX

MOST_LEFT_OUT = 4  # parts of a path: /openai/deployments/NAME/chat/completions is what some clients make of an address

_ANYTHING = "\0"  # a part that no endpoint asks for by itself


class Paths:
    """The paths of an application's `routes`."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes

    def has(self, path: str) -> bool:
        """Does an endpoint answer it, by whatever method?"""
        asked = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        return any(route.matches(asked)[0] is not Match.NONE for route in self._routes)

    def declared(self, path: str) -> str | None:
        """The path with a star for each part that its endpoint takes as it comes; None where there is no endpoint."""
        if not self.has(path):
            return None
        parts = path.split("/")
        for at in range(1, len(parts)):
            if self.has("/".join([*parts[:at], _ANYTHING, *parts[at + 1 :]])):
                parts[at] = "*"
        return "/".join(parts)

    def meant(self, path: str) -> str | None:
        """The path under /v1 that a client with a wrong base address was after."""
        parts = path.strip("/").split("/", MOST_LEFT_OUT)
        guesses = (CLIENTS_PREFIX + "/".join(parts[start:]) for start in range(len(parts)))
        return next((guess for guess in guesses if self.has(guess)), None)
