"""Rules that choose a route before the classifier: words, system prompt, path, key, and regular expressions.

Expressions have a time limit; one that exceeds it does not match.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import regex

from coe_server.errors import ArtifactError
from coe_server.routing.conversation import Conversation
from coe_server.routing.manifest import MatchEntry

REGEX_SECONDS = 0.01  # time limit of one expression on one prompt
LONGEST_READ = 20_000  # characters of a prompt that expressions search


@dataclass(frozen=True, slots=True)
class Rule:
    """The compiled conditions of one route."""

    entry: MatchEntry
    words: Any
    expressions: tuple[Any, ...]

    @classmethod
    def of(cls, entry: MatchEntry) -> Rule:
        """Compile an entry. Raises ArtifactError for an invalid expression."""
        words = "|".join(rf"(?<!\w){regex.escape(word)}(?!\w)" for word in entry.words)
        return cls(entry, _compiled(words) if words else None, tuple(map(_compiled, entry.regex)))

    def matches(self, conversation: Conversation, key: str | None) -> bool:
        """True if every given kind of condition holds."""
        entry, text = self.entry, conversation.turns[-1].text[:LONGEST_READ]
        conditions: tuple[tuple[object, Callable[[], bool]], ...] = (
            (entry.key, lambda: key in entry.key),
            (entry.path, lambda: conversation.path in entry.path),
            (entry.system_prompt, lambda: _contains(conversation.system_prompt, entry.system_prompt)),
            (entry.words, lambda: _finds(self.words, text)),
            (entry.regex, lambda: any(_finds(one, text) for one in self.expressions)),
        )
        return all(holds() for given, holds in conditions if given)


def first_match(rules: Mapping[str, Rule], conversation: Conversation, key: str | None) -> str | None:
    """The first matching route in file order; None if none matches."""
    return next((name for name, rule in rules.items() if rule.matches(conversation, key)), None)


def _contains(text: str, wanted: list[str]) -> bool:
    lowered = text.casefold()
    return any(one.casefold() in lowered for one in wanted)


def _finds(expression: Any, text: str) -> bool:
    try:
        return expression.search(text, timeout=REGEX_SECONDS) is not None
    except TimeoutError:
        return False


def _compiled(expression: str) -> Any:
    try:
        return regex.compile(expression, regex.IGNORECASE)
    except regex.error as error:
        raise ArtifactError(f"match.regex: {expression!r} is invalid: {error}") from error
