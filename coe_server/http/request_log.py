"""Reports one request: to metrics, trace, events and decision log at once, to the log at its end.

The log line contains the prompt only if configured (`log.prompts`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from coe_server import metrics as named
from coe_server.errors import CoeError
from coe_server.http.answers.usage import UNSTATED, Usage
from coe_server.http.headers import Pairs, callers_id, told_wait_ms
from coe_server.http.routed_request import RoutedRequest
from coe_server.routing.decision import RoutingDecision

logger = logging.getLogger("coe.requests")


class RequestLog:
    """Opened when a decision is carried out, closed once with `close`."""

    def __init__(self, request: RoutedRequest, decision: RoutingDecision, arrived: float) -> None:
        """`arrived` is when the request came, in `time.perf_counter`'s seconds."""
        service, parsed = request.service, request.parsed
        self._request = request
        self._telemetry = service.telemetry
        self._decision = decision
        self._arrived = arrived
        self._expert = decision.expert
        self._status: int | None = None
        self._error: CoeError | None = None
        self._is_answered = False
        self._usage = UNSTATED
        self._facts: dict[str, Any] = {}
        self.trace = service.tracing.begin(parsed.api, request.passed_on, parsed.body.fields, decision, arrived)
        self._telemetry.decided(decision)
        if request.serving.traffic is not None:
            request.serving.traffic.see(decision)
        _record(self._request, decision)

    def follows(self, decision: RoutingDecision) -> None:
        """Replace the decision. A handover is logged with the certainty on which it was made."""
        if len(decision.handovers) > len(self._decision.handovers):
            last = decision.handovers[-1]
            self._facts.setdefault("handed_over", []).append(
                {"expert": last.first, "certainty": self._facts.pop("certainty", None), "expected": last.expected}
            )
            self._telemetry.count(named.HANDOVERS, last.first, last.second)
        self._decision, self._expert = decision, decision.expert
        self._telemetry.followed(decision)
        self.trace.follows(decision)
        _record(self._request, decision)

    def granted(self, expert: str, waited_seconds: float) -> float:
        """Log a lease after this wait; seconds since the request's arrival, failed experts included."""
        self._expert = expert
        since_arrival_seconds = time.perf_counter() - self._arrived
        self._facts["wait_ms"] = round(since_arrival_seconds * 1000, 1)
        self._telemetry.observe(named.WAIT, waited_seconds, expert)
        self.trace.granted(expert, waited_seconds, since_arrival_seconds)
        return since_arrival_seconds

    def taken(self, node: str, headers: Pairs) -> float:
        """Log the node that answers; milliseconds from the request's arrival until its expert was granted there."""
        waited_ms: float = self._facts["wait_ms"] + told_wait_ms(headers)
        self._facts["node"] = node
        return waited_ms

    def first_bytes(self, status: int, told: int, is_stream: bool) -> None:
        """Log the beginning of the answer. `told` is the caller's status: after early headers not the expert's.

        An expert's refusal is fast and not an answer: the times of answers exclude it.
        """
        self._facts["status"] = self._status = told
        self.trace.first_bytes(status)
        self._is_answered = status < 400
        if self._is_answered:
            self._telemetry.answered(self._decision)
        if is_stream and self._is_answered:
            seconds = time.perf_counter() - self._arrived
            self._facts["first_token_ms"] = round(seconds * 1000, 1)
            self._telemetry.observe(named.FIRST_TOKEN, seconds, self._expert)

    def used(self, usage: Usage) -> None:
        """Log the tokens stated in the answer, complete or not."""
        self._usage = usage
        stated = usage.stated
        if not stated:
            return
        for kind, tokens in stated:
            self._facts[f"{kind}_tokens"] = tokens
            self._telemetry.took(self._expert, self._request.key_name, kind, tokens)
        if self._request.service.journal is not None:
            self._request.service.journal.took(self._decision.decision_id, dict(stated))

    def judged(self, certainty: float, held_seconds: float) -> None:
        """Log a judgement of an answer's first tokens, which were held for these seconds."""
        self._facts["certainty"] = round(certainty, 4)
        self._telemetry.observe(named.HELD, held_seconds, self._expert)

    def fell_back(self, error: CoeError) -> None:
        """Log a failure before the first content; another expert is tried."""
        self._facts.setdefault("fallbacks", []).append({"expert": self._expert, "reason": error.code})
        self._telemetry.count(named.FALLBACKS, self._expert, error.code)
        self.trace.lost(error)

    def failed(self, error: CoeError, status: int) -> None:
        """Log an answer that is an error or ended in one, with its `status`."""
        self._facts["error"] = error.code
        self._facts["status"] = self._status = status
        self._error = error
        self._telemetry.count(named.ERRORS, error.code)

    def close(self, hung_up: bool) -> None:
        """The request is over. `hung_up`: the client disconnected before the answer was complete."""
        seconds = time.perf_counter() - self._arrived
        if hung_up:
            self._facts["hung_up"] = True
            self._telemetry.count(named.HANG_UPS, self._expert)
        elif self._is_answered and "error" not in self._facts:
            self._telemetry.observe(named.ANSWER, seconds, self._expert)
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "request", extra={"fields": _fields(self._request, self._decision, self._expert, self._facts, seconds)}
            )
        error, self._error = self._error, None  # error -> traceback -> self is a reference cycle
        self.trace.close(self._status, error, hung_up, self._usage)


def _fields(
    request: RoutedRequest, decision: RoutingDecision, expert: str, facts: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """The log line. `expert`: the last one that was granted, or chosen."""
    given, key, prompt = callers_id(request.passed_on), request.key_name, _prompt(request)
    cost, saved = decision.cost, decision.saved
    return {
        "decision_id": decision.decision_id,
        "expert": expert,
        "category": decision.category,
        "confidence": decision.confidence and round(decision.confidence, 4),
        "reason": decision.reason,
        "objective": decision.objective,
        "router_version": decision.router_version,
        "routing_ms": round(decision.routing_ms, 3),
        **({} if cost is None else {"cost": cost}),
        **({} if saved is None else {"saved": round(saved, 6)}),
        **({} if key is None else {"key": key}),
        **({} if given is None else {"caller_request_id": given}),
        **facts,
        "seconds": round(seconds, 4),
        **({} if prompt is None else {"prompt": prompt}),
    }


def _prompt(request: RoutedRequest) -> str | None:
    """The prompt, if prompts are logged; None also for a large body, which was parsed in another process."""
    if not request.service.log_prompts:
        return None
    fields = request.parsed.body.fields
    found = [fields[name] for name in ("messages", "prompt", "input") if name in fields]
    return json.dumps(found) if found else None


def _record(request: RoutedRequest, decision: RoutingDecision) -> None:
    """Write to the live events and to the decision log, without waiting."""
    service = request.service
    service.cache.events.record(
        "decision",
        decision_id=decision.decision_id,
        expert=decision.expert,
        category=decision.category,
        confidence=decision.confidence,
        reason=decision.reason,
        residency=decision.ranking[0].residency,
    )
    if service.journal is not None:
        turns = request.conversation.turns if service.journal.keeps_prompts else ()
        texts = [{"role": "user", "content": turn.text} for turn in turns]
        service.journal.record(decision, texts or None, request.key_name)
