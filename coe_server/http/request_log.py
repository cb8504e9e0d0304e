"""What happened to one request after its decision: told to metrics and trace as it happens, to the log when it is over.

The prompt is no part of it unless the operator asked for that (`log.prompts`).

Writes a decision down wherever it is looked for: the live events and the decision log.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from coe_server import metrics as named
from coe_server.errors import CoeError
from coe_server.events import EventLog
from coe_server.http.trace import Trace
from coe_server.http.usage import UNSTATED, Usage
from coe_server.journal.journal import Journal
from coe_server.metrics import Telemetry
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import RoutingDecision

logger = logging.getLogger("coe.requests")


class Account:
    """Opened when a decision is going to be followed, closed once with `close`."""

    def __init__(
        self,
        telemetry: Telemetry,
        decision: RoutingDecision,
        began: float,
        key: str | None,
        callers_id: str | None,
        prompt: str | None,
        trace: Trace,
    ) -> None:
        """`began` is when the request came, in `time.perf_counter`'s seconds; `key` is the name of the caller's, and
        `callers_id` what the caller itself calls its request."""
        self._telemetry = telemetry
        self._decision = decision
        self._began = began
        self._key = key
        self._callers_id = callers_id
        self._prompt = prompt
        self._trace = trace
        self._status: int | None = None
        self._error: CoeError | None = None
        self._expert = decision.expert
        self._is_answered = False
        self._usage = UNSTATED
        self._facts: dict[str, Any] = {}
        telemetry.decided(decision)

    def follows(self, decision: RoutingDecision) -> None:
        """Another decision takes the place of the last."""
        self._decision, self._expert = decision, decision.expert
        self._telemetry.followed(decision)
        self._trace.follows(decision)

    def granted(self, expert: str, waited_seconds: float) -> float:
        """A lease, after this wait for it; seconds since the request came, failed experts included."""
        self._expert = expert
        since_arrival_seconds = time.perf_counter() - self._began
        self._facts["wait_ms"] = round(since_arrival_seconds * 1000, 1)
        self._telemetry.observe(named.WAIT, waited_seconds, expert)
        self._trace.granted(expert, waited_seconds, since_arrival_seconds)
        return since_arrival_seconds

    def first_bytes(self, status: int, told: int, is_stream: bool) -> None:
        """The answer begins. `told` is what the caller got as its status: not the expert's after an early head.

        An expert's refusal comes in no time and is no answer: it is not among their times.
        """
        self._facts["status"] = self._status = told
        self._trace.first_bytes(status)
        self._is_answered = status < 400
        if is_stream and self._is_answered:
            seconds = time.perf_counter() - self._began
            self._facts["first_token_ms"] = round(seconds * 1000, 1)
            self._telemetry.observe(named.FIRST_TOKEN, seconds, self._expert)

    def used(self, usage: Usage) -> None:
        """The tokens that the answer, or what there was of it, stated."""
        self._usage = usage
        for kind, tokens in usage.stated:
            self._facts[f"{kind}_tokens"] = tokens
            self._telemetry.took(self._expert, self._key, kind, tokens)

    def fell_back(self, error: CoeError) -> None:
        """The expert failed before its first content, and another one is tried."""
        self._facts.setdefault("fallbacks", []).append({"expert": self._expert, "reason": error.code})
        self._telemetry.count(named.FALLBACKS, self._expert, error.code)
        self._trace.lost(error)

    def retried(self, error: CoeError) -> None:
        """The expert failed before its first content, and nobody else can answer: it is asked once more."""
        self._trace.lost(error)

    def hung_up(self) -> None:
        """The client left before its answer was whole."""
        self._facts["hung_up"] = True
        self._telemetry.count(named.HANG_UPS, self._expert)

    def failed(self, error: CoeError, status: int) -> None:
        """The answer is an error, or ended in one; `status` is what it has."""
        self._facts["error"] = error.code
        self._facts["status"] = self._status = status
        self._error = error
        self._telemetry.count(named.ERRORS, error.code)

    def close(self) -> None:
        """The request is over."""
        seconds = time.perf_counter() - self._began
        if self._is_answered and not {"hung_up", "error"} & self._facts.keys():
            self._telemetry.observe(named.ANSWER, seconds, self._expert)
        if logger.isEnabledFor(logging.INFO):
            self._write(seconds)
        error, self._error = self._error, None  # it knows the frames that know us: a circle would be left behind
        self._trace.close(self._status, error, "hung_up" in self._facts, self._usage)

    def _write(self, seconds: float) -> None:
        decision = self._decision
        fields = {
            "decision_id": decision.decision_id,
            "expert": self._expert,
            "category": decision.category,
            "confidence": decision.confidence and round(decision.confidence, 4),
            "reason": decision.reason,
            "objective": decision.objective,
            "router_version": decision.router_version,
            "routing_ms": round(decision.routing_ms, 3),
            **({} if self._key is None else {"key": self._key}),
            **({} if self._callers_id is None else {"caller_request_id": self._callers_id}),
            **self._facts,
            "seconds": round(seconds, 4),
        }
        if self._prompt is not None:
            fields["prompt"] = self._prompt
        logger.info("request", extra={"fields": fields})


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
