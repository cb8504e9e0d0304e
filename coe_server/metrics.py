"""All metrics by name, and the registry of counters and histograms. Does not depend on HTTP or on the cache.

Label values are names from the configuration and the artifact, or fixed codes; never free text.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics

from coe_server.events import Event
from coe_server.routing.decision import RoutingDecision

Labelled = TypeVar("Labelled", Counter, Histogram)

RECENT = 1000  # window of the out-of-domain share, in routed requests
_SHORT = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # seconds
_LONG = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One Prometheus metric. In the output counters get `_total`, histograms `_bucket`, `_sum` and `_count`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# requests
REQUESTS = Metric("coe_requests", "counter", "Requests by endpoint and HTTP status.", ("endpoint", "status"))
KEY_REQUESTS = Metric("coe_key_requests", "counter", "Requests by API key and HTTP status.", ("key", "status"))
ERRORS = Metric("coe_errors", "counter", "Errors told to clients, by their code.", ("code",))
HANG_UPS = Metric("coe_hang_ups", "counter", "Clients that left before their answer was whole.", ("expert",))
FALLBACKS = Metric(
    "coe_fallbacks", "counter", "Requests that left a failed expert, by its error's code.", ("expert", "reason")
)
HANDOVERS = Metric(
    "coe_handovers", "counter", "Answers that another expert took over, by their first tokens.", ("from", "to")
)
HELD = Metric(
    "coe_held_seconds",
    "histogram",
    "From the first token of an answer that is judged until its judgement.",
    ("expert",),
    _LONG,
)
WAIT = Metric("coe_wait_seconds", "histogram", "Wait for a lease on the expert.", ("expert",), _LONG)
FIRST_TOKEN = Metric(
    "coe_time_to_first_token_seconds", "histogram", "From the request to a stream's first bytes.", ("expert",), _LONG
)
ANSWER = Metric("coe_answer_seconds", "histogram", "From the request to the end of its answer.", ("expert",), _LONG)
TOKENS = Metric(
    "coe_tokens",
    "counter",
    "Tokens that answers stated; cached_prompt is part of prompt.",
    ("expert", "kind"),
)
KEY_TOKENS = Metric("coe_key_tokens", "counter", "Tokens that answers stated, by API key.", ("key", "kind"))
# decisions
DECISIONS = Metric(
    "coe_decisions",
    "counter",
    "Decisions that were followed; a fallback is one more.",
    ("category", "expert", "reason"),
)
ROUTING = Metric("coe_routing_seconds", "histogram", "Time one decision took.", (), _SHORT)
OUT_OF_DOMAIN = Metric("coe_out_of_domain", "counter", "Routed requests outside the gate.")
OUT_OF_DOMAIN_SHARE = Metric(
    "coe_out_of_domain_share", "gauge", f"Share of the last {RECENT} routed requests that was outside the gate."
)
LEFT_BAND = Metric(
    "coe_drift",
    "gauge",
    "1 while the traffic's categories, out_of_domain share or confidence are outside the band of the training data.",
    ("reading",),
)
MIX_DISTANCE = Metric(
    "coe_category_mix_distance", "gauge", "Half the sum of differences between categories' shares now and in training."
)
CONFIDENCE = Metric("coe_mean_confidence", "gauge", "Mean confidence of about the last 100 routed requests.")
TRAINING_CONFIDENCE = Metric("coe_training_confidence", "gauge", "Mean confidence on unseen training prompts.")
TRAINING_OUT_OF_DOMAIN = Metric(
    "coe_training_out_of_domain_share", "gauge", "Share of unseen training prompts outside the gate."
)
UNLOGGED = Metric(
    "coe_unlogged_decisions", "counter", "Decisions and answers' tokens that are not in the decision log."
)
FEEDBACK = Metric("coe_feedback", "counter", "Ratings written to the decision log.")
LEARNING_STEPS = Metric("coe_learning_steps", "gauge", "Steps in force by which ratings moved scores.")
LEARNING_RATINGS = Metric("coe_learning_ratings", "gauge", "Ratings of drawn experts that learning uses.")
LEARNING_INTERVAL = Metric(
    "coe_learning_interval_width",
    "gauge",
    "Width of the 95 % interval of an expert's difference to its category's best, in score; none while unknown.",
    ("category", "expert"),
)
COMPARISONS = Metric(
    "coe_comparisons", "counter", "Answers to be compared with another expert's: done, dropped, failed.", ("result",)
)
EMBEDDING_FAILURES = Metric("coe_embedding_failures", "counter", "Prompts routed without the embedding they need.")
BUDGET_TARGET = Metric("coe_budget_target", "gauge", "Mean cost to be held, in the budget's unit.", ("objective",))
BUDGET_MEAN = Metric("coe_budget_mean", "gauge", "Mean cost of the last answered requests.", ("objective",))
BUDGET_MULTIPLIER = Metric("coe_budget_multiplier", "gauge", "Score that one unit of cost must buy.", ("objective",))
COST = Metric("coe_cost", "counter", "Costs of the experts that gave routed answers, one for each answer.", ("unit",))
BEST_SINGLE_COST = Metric(
    "coe_best_single_cost", "counter", "What the best single expert would have cost for the same answers.", ("unit",)
)
RESIDENT_SCORE_LOST = Metric(
    "coe_resident_score_lost", "counter", "Expected score given up for experts already on the device."
)
RESIDENT_WAIT_SAVED = Metric(
    "coe_resident_wait_saved_seconds", "counter", "Predicted wait saved by experts already on the device."
)
ROUTER = Metric("coe_router_info", "gauge", "1, labelled with the version of the router that decides.", ("version",))
# tiers
RESIDENCY = Metric("coe_residency", "gauge", "1 for the fastest tier that holds the expert.", ("expert", "tier"))
FAILED = Metric("coe_expert_failed", "gauge", "1 while the expert cools down after failures.", ("expert",))
BACKOFF = Metric(
    "coe_expert_backoff_seconds",
    "gauge",
    "Seconds until a request is let in again after failures; 0 while requests are let in.",
    ("expert",),
)
LEASES = Metric("coe_leases", "gauge", "Leases held.", ("expert",))
QUEUED = Metric(
    "coe_queued", "gauge", "Leases that are waited for: one for each answer a request asks for.", ("expert",)
)
WAIT_BOUND = Metric("coe_wait_bound_seconds", "gauge", "Upper bound on the wait, with the costs measured so far.")
NODE_USABLE = Metric("coe_node_usable", "gauge", "1 while the node gets new requests.", ("node",))
NODE_REQUESTS = Metric(
    "coe_node_requests",
    "counter",
    "Requests sent to the node: answered, refused (full, or its expert failed), or died without an answer.",
    ("node", "outcome"),
)
NODE_IN_FLIGHT = Metric("coe_node_in_flight", "gauge", "Answers that the node owes this front.", ("node",))
NODE_TIERS = Metric(
    "coe_node_residency",
    "gauge",
    "1 for the fastest tier of the node that holds the expert.",
    ("node", "expert", "tier"),
)
NODE_QUEUED = Metric("coe_node_queued", "gauge", "Leases that are waited for on the node.", ("node", "expert"))
NODE_WAIT = Metric(
    "coe_node_wait_seconds", "gauge", "Predicted wait of a new request for the expert on the node.", ("node", "expert")
)
TIER_BYTES = Metric("coe_tier_bytes", "gauge", "Bytes held in the tier.", ("tier",))
TIER_CAPACITY = Metric("coe_tier_capacity_bytes", "gauge", "Bytes the tier may hold.", ("tier",))
CARD_BYTES = Metric("coe_card_bytes", "gauge", "Bytes that experts hold on the card.", ("card",))
CARD_CAPACITY = Metric("coe_card_capacity_bytes", "gauge", "Bytes that experts may hold on the card.", ("card",))
MOVES = Metric("coe_moves", "counter", "Moves carried out.", ("expert", "from", "to"))
MOVE_BYTES = Metric("coe_move_bytes", "counter", "Device bytes taken or freed by moves.", ("from", "to"))
MOVE_SECONDS = Metric("coe_move_seconds", "histogram", "Time one move took.", ("from", "to"), _LONG)
MOVE_SHARE = Metric(
    "coe_move_bandwidth_share",
    "gauge",
    "Bytes per second of the last move, as a share of coe_tier_bandwidth_bytes_per_second.",
    ("from", "to"),
)
BANDWIDTH = Metric(
    "coe_tier_bandwidth_bytes_per_second",
    "gauge",
    "Measured: the machine's memory copy where that is the limit, else the fastest move so far.",
    ("from", "to"),
)
SWITCHES = Metric("coe_switches", "counter", "Moves to the device that pushed another expert off.", ("expert",))
FAILURES = Metric("coe_expert_failures", "counter", "Failures of engines and moves.", ("expert",))
PREFETCHES = Metric(
    "coe_prefetches",
    "counter",
    "Done before a request asked: brought to the device, sent to sleep for room.",
    ("kind",),
)
USEFUL_PREFETCHES = Metric("coe_useful_prefetches", "counter", "Of those, the ones that turned out useful.", ("kind",))
WASTED_PREFETCHES = Metric("coe_wasted_prefetches", "counter", "Of those, the ones that did not.", ("kind",))

METRICS: tuple[Metric, ...] = tuple(value for value in list(vars().values()) if isinstance(value, Metric))


class Telemetry:
    """Counters and histograms of events. State that can be read at any time (queues, residency) is not kept here."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second, unused series for every counter
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._counters = {one.name: _counter(one, self.registry) for one in METRICS if one in _COUNTED}
        self._histograms = {
            one.name: Histogram(one.name, one.help, one.labels, registry=self.registry, buckets=one.buckets)
            for one in METRICS
            if one.kind == "histogram"
        }
        self._counter = _Children(self._counters)
        self._histogram = _Children(self._histograms)
        self.tokens: defaultdict[tuple[str, str], int] = defaultdict(int)  # (expert, kind) -> tokens
        self.key_tokens: defaultdict[tuple[str, str], int] = defaultdict(int)  # (key, kind) -> tokens
        self.costs: dict[tuple[str, str], tuple[float, float]] = {}  # (best single, unit) -> spent, and instead
        self.recently_outside: deque[bool] = deque(maxlen=RECENT)  # of the last routed requests: outside the gate
        self.bandwidth = Bandwidth()

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        self._counter(metric.name, *labels).inc(by)

    def observe(self, metric: Metric, seconds: float, *labels: str) -> None:
        """Add one observation to a histogram."""
        self._histogram(metric.name, *labels).observe(seconds)

    def decided(self, decision: RoutingDecision) -> None:
        """Count the first decision of a request."""
        self.followed(decision)
        self.observe(ROUTING, decision.routing_ms / 1000)
        if decision.gate.inside is not None:
            self.recently_outside.append(not decision.gate.inside)
            if not decision.gate.inside:
                self.count(OUT_OF_DOMAIN)

    def followed(self, decision: RoutingDecision) -> None:
        """Count a decision that takes effect: the first one, or a later one that replaces it."""
        self.count(DECISIONS, decision.category or "", decision.expert, decision.reason)
        if decision.reason == "resident":
            self.count(RESIDENT_SCORE_LOST, by=max(0.0, decision.resident.score_lost))
            self.count(RESIDENT_WAIT_SAVED, by=decision.resident.wait_saved_seconds)

    def answered(self, decision: RoutingDecision) -> None:
        """Count the cost of a routed answer, and that of the best single expert."""
        costs, cost = decision.costs, decision.cost
        if costs is None or cost is None:
            return
        best = costs.of[costs.best_single]
        self.count(COST, costs.unit, by=cost)
        self.count(BEST_SINGLE_COST, costs.unit, by=best)
        spent, instead = self.costs.get((costs.best_single, costs.unit), (0.0, 0.0))
        self.costs[costs.best_single, costs.unit] = spent + cost, instead + best

    def took(self, expert: str, key: str | None, kind: str, tokens: int) -> None:
        """Add an answer's token count. Kept in dictionaries: a labelled counter is four times as slow."""
        if expert not in self._counter.gone:
            self.tokens[expert, kind] += tokens
        if key is not None:
            self.key_tokens[key, kind] += tokens

    def saw(self, event: Event) -> None:
        """Count an event of the cache."""
        fields = event.fields
        match event.kind:
            case "move":
                self._moved(fields["expert"], (fields["from"], fields["to"]), fields["seconds"], fields["bytes"])
            case "switch":
                self.count(SWITCHES, fields["expert"])
            case "failure":
                self.count(FAILURES, fields["expert"])
            case "expert" if fields["change"] == "removed":
                self._forget(fields["expert"])
            case "expert":
                self._counter.know(fields["expert"])
                self._histogram.know(fields["expert"])

    def _forget(self, expert: str) -> None:
        """Drop every series of an expert that was removed; what its last requests still count is dropped, too."""
        self._counter.forget(expert)
        self._histogram.forget(expert)
        for labels in [labels for labels in self.tokens if labels[0] == expert]:
            del self.tokens[labels]

    def _moved(self, expert: str, tiers: tuple[str, str], seconds: float, size_bytes: int) -> None:
        self.count(MOVES, expert, *tiers)
        self.count(MOVE_BYTES, *tiers, by=size_bytes)
        self.observe(MOVE_SECONDS, seconds, *tiers)
        if size_bytes and seconds > 0:
            self.bandwidth.saw_move(*tiers, size_bytes / seconds)


class Bandwidth:
    """Bytes per second by (from, to) tier: the machine's limit if measured, else the fastest move so far."""

    def __init__(self) -> None:
        self.bytes_per_second: dict[tuple[str, str], float] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._measured: set[tuple[str, str]] = set()

    def measured(self, source: str, target: str, bytes_per_second: float) -> None:
        """Set the machine's limit between two tiers; moves no longer change it."""
        self.bytes_per_second[source, target] = bytes_per_second
        self._measured.add((source, target))

    def saw_move(self, source: str, target: str, bytes_per_second: float) -> None:
        tiers = source, target
        self._last[tiers] = bytes_per_second
        if tiers not in self._measured:
            self.bytes_per_second[tiers] = max(bytes_per_second, self.bytes_per_second.get(tiers, 0.0))

    @property
    def shares(self) -> dict[tuple[str, str], float]:
        """Speed of the last move as a share of the limit, by (from, to) tier."""
        return {tiers: last / self.bytes_per_second[tiers] for tiers, last in self._last.items()}


_LOOKED_UP = {PREFETCHES, USEFUL_PREFETCHES, WASTED_PREFETCHES, UNLOGGED, FEEDBACK, TOKENS, KEY_TOKENS, NODE_REQUESTS}
_COUNTED = frozenset(one for one in METRICS if one.kind == "counter") - _LOOKED_UP


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


_LABELS = {one.name: one.labels for one in METRICS}


def _expert_of(name: str, *labels: str) -> str | None:
    return dict(zip(_LABELS[name], labels, strict=True)).get("expert")


class _Children(Generic[Labelled]):
    """A cached look-up (name, *labels) -> child: prometheus_client's own takes locks and checks. Labels are bounded."""

    def __init__(self, metrics: Mapping[str, Labelled]) -> None:
        self.gone: set[str] = set()  # experts that were removed
        self._metrics: Mapping[str, Labelled] = metrics
        self._found: dict[tuple[str, ...], Labelled] = {}

    def __call__(self, *name_and_labels: str) -> Labelled:
        found = self._found.get(name_and_labels)
        if found is None:
            found = self._found[name_and_labels] = self._child(*name_and_labels)
        return found

    def forget(self, expert: str) -> None:
        """Drop the series of this expert. Its children count for nothing until it is known again."""
        for name, *labels in self._drop(expert):
            self._metrics[name].remove(*labels)
        self.gone.add(expert)

    def know(self, expert: str) -> None:
        if expert in self.gone:
            self._drop(expert)
            self.gone.discard(expert)

    def _drop(self, expert: str) -> list[tuple[str, ...]]:
        of_it = [key for key in self._found if _expert_of(*key) == expert]
        for key in of_it:
            del self._found[key]
        return [] if expert in self.gone else of_it

    def _child(self, name: str, *labels: str) -> Labelled:
        metric = self._metrics[name]
        if not labels:
            return metric
        if _expert_of(name, *labels) in self.gone:
            return type(metric)(name, "Of an expert that is gone.", registry=None)
        return metric.labels(*labels)
