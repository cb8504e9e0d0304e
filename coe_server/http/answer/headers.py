"""The decision and the wait as response headers."""

from __future__ import annotations

import json
from collections.abc import Mapping

from coe_server.http.request_id import REQUEST_ID
from coe_server.routing.decision import RoutingDecision


def decision_headers(decision: RoutingDecision) -> dict[str, str]:
    """The decision as response headers; text that is not ASCII is written as JSON escapes."""
    headers = {
        REQUEST_ID: decision.decision_id,
        "x-coe-decision-id": decision.decision_id,
        "x-coe-expert": decision.expert,
        "x-coe-reason": decision.reason,
        "x-coe-residency": decision.ranking[0].residency or "",
        "x-coe-routing-ms": f"{decision.routing_ms:.3f}",
        "x-coe-router-version": decision.router_version,
    }
    if decision.category is not None and decision.confidence is not None:
        headers["x-coe-category"] = json.dumps(decision.category)[1:-1]
        headers["x-coe-confidence"] = f"{decision.confidence:.4f}"
    return headers


def wait_header(waited_seconds: float) -> dict[str, str]:
    """`waited_seconds`: from the request's arrival until the expert that answers was granted, failed ones included."""
    return {"x-coe-wait-ms": f"{waited_seconds * 1000:.1f}"}


def answering(headers: Mapping[str, str]) -> str:
    """Who answers, for a stream whose headers had to leave before that was settled."""
    told = {"expert": "x-coe-expert", "reason": "x-coe-reason", "wait_ms": "x-coe-wait-ms"}
    return " ".join(("answering", *(f"{word}={headers[name]}" for word, name in told.items())))
