"""Which expert a conversation stays with: a bounded memory of who answered last. Knows neither time nor HTTP."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Kept, RouteOptions, RoutingDecision

MOST_SESSIONS = 10_000
_OPENING_CHARACTERS = 2_000
_NOT_KEPT = frozenset(
    ("requested", "fallback")
)  # the caller's wish, or an accident: neither is the conversation's expert


class Sessions:
    """Conversation -> `Kept`. The one that was longest not heard of is forgotten first."""

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def last(self, key: bytes | None, conversation: Conversation, options: RouteOptions) -> Kept | None:
        """Who answered this conversation last; None for one that only begins, unless the caller named its session."""
        if key is None or not (conversation.continues or options.session is not None):
            return None
        return self._kept.get(key)

    def remember(self, key: bytes | None, decision: RoutingDecision) -> None:
        """`decision` was followed and answered. A kept expert keeps the topic that it was chosen for."""
        if key is None or decision.reason in _NOT_KEPT:
            return
        before = self._kept.pop(key, None)
        stays = decision.reason == "sticky" and before is not None and before.expert == decision.expert
        self._kept[key] = before if stays and before else Kept(decision.expert, decision.category)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


def session_key(conversation: Conversation, options: RouteOptions, owner: str | None) -> bytes | None:
    """The name the caller gave, else a hash of how the conversation began; None where there is neither.

    `owner` is whose key asked: nobody steers another one's conversations by naming or repeating them.
    """
    if options.expert is not None:
        return None
    told = options.session if options.session is not None else conversation.opening[:_OPENING_CHARACTERS]
    if not told:
        return None
    kind = "session" if options.session is not None else "opening"
    digest = hashlib.blake2b(digest_size=16)
    for part in (owner or "", options.objective or "", kind, told):
        encoded = part.encode("utf-8", "replace")
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.digest()
