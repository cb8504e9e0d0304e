"""Writes a decision down wherever it is looked for: the live events and the decision log."""

from __future__ import annotations

from dataclasses import dataclass

from coe_server.events import EventLog
from coe_server.http.answer.usage import Usage
from coe_server.journal.journal import Journal
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import RoutingDecision


@dataclass(frozen=True, slots=True)
class Chronicle:
    """`journal` is None where no decisions are kept."""

    events: EventLog
    journal: Journal | None = None

    def record(self, decision: RoutingDecision, conversation: Conversation, owner: str | None) -> None:
        """One decision that is being followed, for the key of this name; returns at once."""
        self.events.record(
            "decision",
            decision_id=decision.decision_id,
            expert=decision.expert,
            category=decision.category,
            confidence=decision.confidence,
            reason=decision.reason,
            residency=decision.ranking[0].residency,
        )
        if self.journal is not None:
            texts = [turn.text for turn in conversation.turns] if self.journal.keeps_prompts else []
            self.journal.record(decision, [{"role": "user", "content": text} for text in texts] or None, owner)

    def took(self, decision: RoutingDecision, usage: Usage) -> None:
        """What the answer to it stated that it took; returns at once."""
        if self.journal is not None and usage.stated:
            self.journal.took(decision.decision_id, dict(usage.stated))
