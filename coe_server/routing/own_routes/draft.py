"""Routes with a few examples each -> an artifact without recorded outcomes. numpy only: servers run it at start.

The classifier is fitted on the examples; temperature and gate are set from cross-validated predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from coe_server.config.routes import DEFAULT_ROUTE, DefaultSettings, RatedExpert, RouteSettings, RoutesFile
from coe_server.routing.artifact import Artifact, HeldOut
from coe_server.routing.classifier import Classifier, LinearModel, Temperature, softmax
from coe_server.routing.decision import GENERAL
from coe_server.routing.embeddings import EmbeddedFeatures
from coe_server.routing.features import Features, Floats, Turn, Vectoriser, buckets, distinct, normalised
from coe_server.routing.frame import NEWEST, unframed
from coe_server.routing.gate import Gate, NgramGate, nearest_mean, postings
from coe_server.routing.manifest import (
    ExpertEntry,
    FeatureSettings,
    Manifest,
    MatchEntry,
    ObjectiveEntry,
    RouteEntry,
    ScoreEntry,
    Thresholds,
)
from coe_server.routing.own_routes.few_examples import (
    alike,
    counted_pairs,
    fitted_duals,
    fitted_temperature,
    folds_of,
    left_out_logits,
)

BUCKET_BITS = 18
MOST_COLUMNS = 65_536
NEIGHBOURS = 3
OUTSIDE_SHARE = 0.1  # share of the left-out examples that fall outside the gate
UNSURE_SHARE = 0.25  # share of the left-out examples that count as unsure
OUTSIDE_EMBEDDED, UNSURE_EMBEDDED = 0.02, 0.08  # the same with embeddings, which know more of what resembles a route
NEVER_INSIDE = 2.0  # a threshold above every cosine
EMBEDDED_LENGTH = 2.0  # of embeddings beside n-grams of length 1: examples are few, and share few words with prompts
NO_EXAMPLES = -1e4  # intercept of a route that only rules select
UNRATED_MEAN = 0.5  # of a route with benchmarks and without ratings: only differences count
SAME = 0.9  # least cosine of near-duplicates

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Cross-validated predictions: `texts` [n], their route, the predicted route, and its probability."""

    routes: tuple[str, ...]
    texts: tuple[str, ...]
    labels: Ints
    probabilities: Vector
    inside: npt.NDArray[np.bool_]
    same: list[tuple[int, int]]

    @property
    def chosen(self) -> Ints:
        """[n]: the predicted route; the default for examples that are outside the gate or unsure."""
        outside = self.routes.index(DEFAULT_ROUTE)
        return np.where(self.inside, self.probabilities.argmax(axis=1), outside).astype(np.int64)

    @property
    def accuracy(self) -> float:
        """The share of examples with a correct prediction."""
        return float((self.chosen == self.labels).mean()) if len(self.labels) else 0.0

    def hard_pairs(self) -> list[tuple[str, str, int]]:
        """Confused routes: (route, predicted route, count)."""
        pairs = counted_pairs(self.labels.tolist(), self.chosen.tolist())
        return [(self.routes[one], self.routes[other], times) for one, other, times in pairs]

    def warnings(self) -> list[str]:
        """One sentence for each pair of near-duplicate examples, within a route or between two."""
        found = []
        for one, other in self.same:
            first, second = self.routes[self.labels[one]], self.routes[self.labels[other]]
            whose = f"of route {first}" if first == second else f"of routes {first} and {second}, which overlap,"
            found.append(f"two examples {whose} are nearly the same: {self.texts[one]!r} and {self.texts[other]!r}")
        return found


@dataclass(frozen=True, slots=True)
class Draft:
    """An artifact without recorded outcomes, its held-out predictions, and the predictions for left-out examples."""

    artifact: Artifact
    held_out: HeldOut
    left_out: LeftOut


def draft(routes: RoutesFile, embedded: Floats | None = None, embeddings: FeatureSettings | None = None) -> Draft:
    """The router of these routes.

    `embedded` [n, dimensions]: embeddings of `texts_of(routes)`, of length 1, by the model in `embeddings`.
    """
    names = tuple(routes.targets)
    texts, labels = texts_of(routes), labels_of(routes)
    read = texts or [DEFAULT_ROUTE]  # only rules: a placeholder that no prompt resembles
    ngrams = _features(read)
    features: Vectoriser = ngrams
    if embedded is not None and texts:
        features = EmbeddedFeatures(ngrams, embedded.shape[1], normalisation=NEWEST)
    rows = _rows(ngrams, read)
    spread = None if embedded is None or not texts else Spread.of(embedded)
    matrix = rows if spread is None else np.hstack([rows, spread.apart(embedded)])
    where = labels if texts else np.array([len(names) - 1], dtype=np.int64)
    known, compact = np.unique(where, return_inverse=True)
    gram = (matrix @ matrix.T).astype(np.float64)
    logits = left_out_logits(gram, compact, len(known))
    temperature = fitted_temperature(logits, compact)
    cosines = _left_out_cosines(rows, where)
    outside, unsure = (OUTSIDE_SHARE, UNSURE_SHARE) if spread is None else (OUTSIDE_EMBEDDED, UNSURE_EMBEDDED)
    threshold = float(np.quantile(cosines, outside)) if len(texts) > 1 else NEVER_INSIDE
    model = _model(matrix, fitted_duals(gram, compact, len(known)), known, len(names))
    model = model if spread is None else spread.folded_into(model, ngrams.columns)
    gate = _gate(rows, threshold)
    probabilities = np.zeros((len(read), len(names)))
    probabilities[:, known] = softmax(logits / temperature)
    least = float(np.quantile(probabilities.max(axis=1), unsure)) if len(known) > 1 else 0.0
    thresholds = Thresholds(gate=threshold, min_confidence=least)
    manifest = _manifest(routes, features, embeddings, temperature, thresholds, read)
    artifact = Artifact(
        manifest,
        features,
        Classifier(model, Temperature(temperature)),
        NgramGate(gate, ngrams.columns, threshold) if isinstance(features, EmbeddedFeatures) else gate,
        {name: dict(entry.mapping) for name, entry in manifest.objectives.items()},
    )
    inside = (cosines >= threshold) & (probabilities.max(axis=1) >= least)
    left_out = LeftOut(names, tuple(read), where, probabilities, inside, alike(gram, SAME))
    return Draft(artifact, _held_out(probabilities, inside, len(manifest.experts)), left_out)


@dataclass(frozen=True, slots=True)
class Spread:
    """What sets embeddings apart: their mean is taken off and the rest multiplied by `factor`.

    Embeddings of one model are alike: of multilingual e5, two unrelated prompts have a cosine of 0.8.
    """

    mean: Floats
    factor: float

    @classmethod
    def of(cls, embedded: Floats) -> Spread:
        """Of the examples: afterwards their root mean square length is EMBEDDED_LENGTH."""
        mean = embedded.mean(axis=0)
        length = float(np.sqrt(((embedded - mean) ** 2).sum(axis=1).mean()))
        return cls(mean, EMBEDDED_LENGTH / length if length > 0.0 else 1.0)

    def apart(self, embedded: Floats | None) -> Floats:
        """[n, dimensions]: the embeddings, set apart."""
        assert embedded is not None, "a spread is made of embeddings"
        return np.asarray((embedded - self.mean) * self.factor, dtype=np.float32)

    def folded_into(self, model: LinearModel, ngrams: int) -> LinearModel:
        """The same model for plain embeddings; its first `ngrams` rows are those of n-grams."""
        weights = model.coefficients[ngrams:] * np.float32(self.factor)
        coefficients = np.vstack([model.coefficients[:ngrams], weights])
        return LinearModel(coefficients, (model.intercepts - self.mean @ weights).astype(np.float32))


def texts_of(routes: RoutesFile) -> list[str]:
    """All examples, descriptions included, in the order of the routes."""
    return [text for target in routes.targets.values() for text in target.texts]


def labels_of(routes: RoutesFile) -> Ints:
    """[n]: the route of each example."""
    counts = [len(target.texts) for target in routes.targets.values()]
    return np.repeat(np.arange(len(counts)), counts).astype(np.int64)


def _features(texts: Sequence[str]) -> Features:
    """All n-grams of the examples, with the smoothed IDF of training."""
    found = [distinct(buckets(unframed(text), BUCKET_BITS))[0] for text in texts]
    kept, with_it = np.unique(np.concatenate(found), return_counts=True)
    if len(kept) > MOST_COLUMNS:
        most = np.sort(np.argsort(-with_it, kind="stable")[:MOST_COLUMNS])
        kept, with_it = kept[most], with_it[most]
    idf = np.log((1.0 + len(texts)) / (1.0 + with_it)) + 1.0
    return Features.of(BUCKET_BITS, kept.astype(np.int64), idf.astype(np.float32), NEWEST)


def _rows(features: Features, texts: Sequence[str]) -> Floats:
    """[n, columns], dense, since there are few texts."""
    rows = np.zeros((len(texts), features.columns), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        vector = features.vector((Turn(text),))
        row[vector.columns] = vector.weights
    return rows


def _left_out_cosines(rows: Floats, labels: Ints) -> Vector:
    """[n]: similarity of each example to its nearest other examples, computed as the gate does."""
    if len(rows) < 2:
        return np.zeros(len(rows))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (rows @ rows.T / np.maximum(lengths * lengths.T, 1e-12)).astype(np.float64)
    folds = folds_of(labels)
    cosines[folds[:, np.newaxis] == folds] = 0.0
    return nearest_mean(cosines, NEIGHBOURS)


def _model(matrix: Floats, duals: Vector, known: Ints, routes: int) -> LinearModel:
    coefficients = np.zeros((matrix.shape[1], routes), dtype=np.float32)
    coefficients[:, known] = matrix.T @ duals.astype(np.float32)
    intercepts = np.full(routes, NO_EXAMPLES, dtype=np.float32)
    intercepts[known] = 0.0
    return LinearModel(coefficients, intercepts)


def _gate(rows: Floats, threshold: float) -> Gate:
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    columns, examples = np.nonzero(scaled.T)
    starts = np.searchsorted(columns, np.arange(rows.shape[1] + 1)).astype(np.int64)
    return Gate(starts, postings(examples, scaled[examples, columns]), len(rows), NEIGHBOURS, threshold)


def _held_out(probabilities: Vector, inside: npt.NDArray[np.bool_], experts: int) -> HeldOut:
    count = len(probabilities)
    ones = np.ones(count, dtype=np.float32)
    return HeldOut(
        probabilities.astype(np.float32),
        np.zeros((count, experts), dtype=np.float32),
        inside.astype(np.float32),
        ones,
        ones,
    )


def _manifest(
    routes: RoutesFile,
    features: Vectoriser,
    embeddings: FeatureSettings | None,
    temperature: float,
    thresholds: Thresholds,
    texts: Sequence[str],
) -> Manifest:
    names, experts = list(routes.targets), routes.expert_names
    score = {name: _score_row(routes, name, experts) for name in names}
    first = {name: target.names[0] for name, target in routes.targets.items()}
    overall = {one: _overall([score[name][one] for name in names]) for one in experts}
    said = routes.model_dump_json() + "".join(normalised(text).tobytes().decode("utf-8", "replace") for text in texts)
    return Manifest(
        features=embeddings or FeatureSettings(bucket_bits=BUCKET_BITS, normalisation=NEWEST),
        categories=names,
        temperature=temperature,
        prototypes=len(texts),
        neighbours=NEIGHBOURS,
        thresholds=thresholds,
        mode="soft",
        experts=[_expert(name, routes.experts.get(name, RatedExpert())) for name in experts],
        score=score,
        overall=overall,
        objectives={
            "quality": ObjectiveEntry(
                active_params_b=None,
                multiplier=0.0,
                experts=experts,
                mapping={GENERAL: first[DEFAULT_ROUTE], **first},
                fallback=first[DEFAULT_ROUTE],
                expected_score=0.0,
                expected_active_params_b=0.0,
                gap=0.0,
                measured=False,
            )
        },
        pins={},
        bans={},
        front=[],
        seed=0,
        data_hash=sha256(said.encode("utf-8", "replace")).hexdigest(),
        prompts=len(texts),
        versions={name: version(name) for name in ("coe-server", "numpy")},
        routes={name: _entry(target) for name, target in routes.targets.items()},
    )


def _entry(target: RouteSettings | DefaultSettings) -> RouteEntry:
    match target:
        case RouteSettings():
            match_entry = MatchEntry(**target.match.model_dump()) if target.match else None
            return RouteEntry(
                experts=target.names, otherwise=target.otherwise, tolerance=target.tolerance, match=match_entry
            )
        case DefaultSettings():
            return RouteEntry(experts=target.names)


def _expert(name: str, known: RatedExpert) -> ExpertEntry:
    """The expert's entry. Vision and tools are left unknown, so only the server's configuration can exclude it."""
    return ExpertEntry(
        name=name,
        active_params_b=known.active_params_b,
        total_params_b=known.active_params_b or 0.0,
        context_tokens=None,
        vision=True,
        tools=True,
    )


def _score_row(routes: RoutesFile, route: str, experts: Sequence[str]) -> dict[str, ScoreEntry]:
    """Scores from ratings, each counted as `prior_prompts` prompts; a missing rating is the mean, with 0 prompts.

    An expert with benchmarks alone is that far from the mean as it is, on average, from the mean of each benchmark.
    """
    rated = {one: known.ratings[route] for one, known in routes.experts.items() if route in known.ratings}
    benchmarks = routes.benchmarks_of(route)
    mean = sum(rated.values()) / len(rated) if rated else UNRATED_MEAN if benchmarks else 0.0
    for one in (name for name in experts if name not in rated):
        differences = [known.difference(one) for known in benchmarks if one in known.shares]
        if differences:
            rated[one] = min(1.0, max(0.0, mean + sum(differences) / len(differences)))
    prompts = {one: routes.prior_prompts if one in rated else 0 for one in experts}
    return {one: ScoreEntry(score=rated.get(one, mean), prompts=prompts[one], standard_error=None) for one in experts}


def _overall(entries: Sequence[ScoreEntry]) -> ScoreEntry:
    rated = [entry for entry in entries if entry.prompts]
    mean = sum(entry.score for entry in rated) / len(rated) if rated else 0.0
    return ScoreEntry(score=mean, prompts=sum(entry.prompts for entry in rated), standard_error=None)
