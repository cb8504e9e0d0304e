"""`GET /metrics`: counters, and gauges that are read at each scrape, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from starlette.responses import Response

from coe_server import metrics as named
from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.prefetch import Guess
from coe_server.cluster.nodes import Nodes
from coe_server.http.serving import Service
from coe_server.http.traffic import Traffic
from coe_server.metrics import Metric, Telemetry

Labels = TypeVar("Labels", bound=tuple[str, ...])
TIERS = ("device", "host", "disk", "remote")


def build_metrics(service: Service) -> APIRouter:
    """The route; registers the collector of gauges."""
    metrics = APIRouter()
    registry = service.telemetry.registry
    registry.register(_Now(service))

    @metrics.get("/metrics")
    async def read() -> Response:
        """Every metric in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return metrics


class _Now(Collector):
    """Reads gauges at each scrape: on the server's loop, so between two changes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Family]:
        return ()  # registering must not read yet

    def collect(self) -> Iterator[Family]:
        cache, telemetry = self._service.cache, self._service.telemetry
        yield from _experts(self._service)
        yield from _nodes(self._service.nodes)
        yield from _tiers(cache, telemetry)
        yield from _routing(self._service)
        yield _family(named.TOKENS, telemetry.tokens)
        yield _family(named.KEY_TOKENS, telemetry.key_tokens)
        if self._service.serving.traffic is not None:
            yield from _drift(self._service.serving.traffic)
        if self._service.learner is not None:
            yield _family(named.LEARNING_STEPS, {(): len(self._service.learner.steps.steps)})
            yield _family(named.LEARNING_RATINGS, {(): self._service.learner.ratings})
            yield _family(named.LEARNING_INTERVAL, self._service.learner.interval_widths)
        if self._service.journal is not None:
            counts = self._service.journal.counts
            yield _family(named.UNLOGGED, {(): counts.dropped})
            yield _family(named.FEEDBACK, {(): counts.feedback})


def _experts(service: Service) -> Iterator[Family]:
    cache = service.cache
    found = [one for one in cache.status() if not service.is_on_nodes(one.name)]  # those have metrics of their own
    where = {(one.name, tier): float(one.residency == tier) for one in found for tier in TIERS}
    yield _family(named.RESIDENCY, where)
    yield _family(named.FAILED, {(one.name,): float(one.failure is not None) for one in found})
    yield _family(named.BACKOFF, {(one.name,): one.returns_seconds or 0.0 for one in found})
    yield _family(named.LEASES, {(one.name,): one.leases for one in found})
    yield _family(named.QUEUED, {(one.name,): one.queued for one in found})
    yield _family(named.WAIT_BOUND, {(): cache.bounds.seconds()})
    for metric, counts in (
        (named.PREFETCHES, cache.guesses.begun),
        (named.USEFUL_PREFETCHES, cache.guesses.useful),
        (named.WASTED_PREFETCHES, cache.guesses.wasted),
    ):
        yield _family(metric, {(guess.value,): counts[guess] for guess in Guess})


def _nodes(nodes: Nodes | None) -> Iterator[Family]:
    """Those of a front; on any other server they have no samples."""
    known = () if nodes is None else nodes.known()
    told = [(node.name, one) for node in known if node.snapshot is not None for one in node.snapshot.experts.values()]
    usable = {(node.name,): float(node.unusable is None and not node.drained) for node in known}
    yield _family(named.NODE_USABLE, usable)
    yield _family(named.NODE_REQUESTS, {} if nodes is None else dict(nodes.sent.outcomes))
    owed = {} if nodes is None else {(node.name,): nodes.sent.owed(node.name) for node in known}
    yield _family(named.NODE_IN_FLIGHT, owed)
    where = {(node, one.name, tier): float(one.tier == tier) for node, one in told for tier in TIERS}
    yield _family(named.NODE_TIERS, where)
    yield _family(named.NODE_QUEUED, {(node, one.name): one.queued for node, one in told})
    yield _family(named.NODE_WAIT, {(node, one.name): one.wait_seconds for node, one in told})


def _tiers(cache: ExpertCache, telemetry: Telemetry) -> Iterator[Family]:
    used, capacity = cache.ledger.used, cache.ledger.capacity
    yield _family(named.TIER_BYTES, {("device",): used.device, ("host",): used.host})
    yield _family(named.TIER_CAPACITY, {("device",): capacity.device, ("host",): capacity.host})
    cards = range(len(capacity.cards))
    yield _family(named.CARD_BYTES, {(str(card),): used.on(card) for card in cards})
    yield _family(named.CARD_CAPACITY, {(str(card),): capacity.on(card) for card in cards})
    yield _family(named.BANDWIDTH, telemetry.bandwidth.bytes_per_second)
    yield _family(named.MOVE_SHARE, telemetry.bandwidth.shares)


def _routing(service: Service) -> Iterator[Family]:
    router = service.serving.router
    prices = {objective: router.price(objective) for objective in router.objectives}
    targets = {(name,): price.target for name, price in prices.items() if price.target is not None}
    means = {(name,): price.mean for name, price in prices.items() if price.mean is not None}
    yield _family(named.OUT_OF_DOMAIN_SHARE, {(): _share(service.telemetry.recently_outside)})
    yield _family(named.BUDGET_TARGET, targets)
    yield _family(named.BUDGET_MEAN, means)
    yield _family(named.BUDGET_MULTIPLIER, {(name,): price.multiplier for name, price in prices.items()})
    yield _family(named.ROUTER, {(router.version,): 1.0})


def _share(recent: Collection[bool]) -> float:
    return sum(recent) / len(recent) if recent else 0.0


def _drift(traffic: Traffic) -> Iterator[Family]:
    drift, reference = traffic.drift, traffic.reference
    yield _family(named.LEFT_BAND, {(reading,): float(left) for reading, left in drift.left_band.items()})
    yield _family(named.MIX_DISTANCE, {(): drift.mix_distance})
    yield _family(named.CONFIDENCE, {(): drift.confidence})
    yield _family(named.TRAINING_CONFIDENCE, {(): reference.confidence})
    yield _family(named.TRAINING_OUT_OF_DOMAIN, {(): reference.outside})


def _family(metric: Metric, values: Mapping[Labels, float]) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
