"""Can this expert take this request? The first obstacle as a sentence, or None.

Knows nothing of categories, scores or where weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from coe_server.routing.conversation import Conversation, Endpoint
from coe_server.routing.decision import Availability, RouteOptions

Known = TypeVar("Known")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an expert can take; None means unknown, and is not held against it."""

    context_tokens: int | None = None
    vision: bool | None = None
    tools: bool | None = None
    endpoints: frozenset[Endpoint] | None = None

    def over(self, other: Capabilities) -> Capabilities:
        """What is known here, and what `other` knows of the rest."""
        return Capabilities(
            _first(self.context_tokens, other.context_tokens),
            _first(self.vision, other.vision),
            _first(self.tools, other.tools),
            _first(self.endpoints, other.endpoints),
        )


UNKNOWN = Capabilities()


def obstacle(
    name: str,
    active_params_b: float | None,
    capabilities: Capabilities,
    conversation: Conversation,
    options: RouteOptions,
) -> str | None:
    """Why this expert cannot take this request, whatever its state; None if it can."""
    if options.allow is not None and name not in options.allow:
        return "not in the request's allow list"
    cap = options.max_active_params_b
    if cap is not None and active_params_b is None:
        return f"its active parameters are unknown and the request's cap is {cap:g} B"
    if cap is not None and active_params_b is not None and active_params_b > cap:
        return f"{active_params_b:g} B active parameters are over the request's cap of {cap:g} B"
    return _missing_ability(capabilities, conversation)


def absence(availability: Availability | None) -> str | None:
    """Why this expert cannot be had now; None if it can."""
    return "not served here" if availability is None else availability.unavailable


def _first(ours: Known | None, theirs: Known | None) -> Known | None:
    return theirs if ours is None else ours


def _missing_ability(capabilities: Capabilities, conversation: Conversation) -> str | None:
    if capabilities.endpoints is not None and conversation.endpoint not in capabilities.endpoints:
        return f"does not serve {conversation.endpoint} requests"
    limit = capabilities.context_tokens
    if limit is not None and conversation.needed_tokens > limit:
        return f"holds {limit} tokens and the request needs about {conversation.needed_tokens}"
    if conversation.has_images and capabilities.vision is False:
        return "cannot see images"
    if conversation.has_tools and capabilities.tools is False:
        return "cannot call tools"
    return None
