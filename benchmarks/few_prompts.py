"""What routing gains with few prompts, beside plain logistic regression with soft mixing, on the same draws.

Each draw trains on 400 prompts as `coe-train fit` would, and asks others. Needs ../shared/data, which is not part of
the project. Takes some minutes for each data set.

    python -m benchmarks.few_prompts --suites nine
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.routing_quality import DATA, SUITES, _dataset
from coe_server.routing.artifact import Artifact
from coe_server.routing.scoring import Scorer
from router_training import in_silence
from router_training.cross_fit.draft import counted, learn
from router_training.data.dataset import Dataset

Vector = npt.NDArray[np.float64]

PROMPTS, TESTED, DRAWS = 400, 1_500, 10
ROUTERS = ("plain logistic regression", "this router", "this router without gate and corrections")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--suites", nargs="+", default=["nine", "coe5"], choices=list(SUITES))
    options.add_argument("--draws", type=int, default=DRAWS)
    options.add_argument("--data", type=Path, default=DATA)
    asked = options.parse_args()
    if not asked.data.is_dir():
        sys.exit(f"skipped: {asked.data} is not there; the recorded outcomes are not part of the project")
    for suite in asked.suites:
        gains = np.array([drawn(suite, draw) for draw in range(asked.draws)])
        print("\n".join(table(suite, gains)))


def drawn(suite: str, draw: int) -> list[float]:
    """The gain of each router over the best single expert in hindsight, in points."""
    dataset = _dataset(suite, "category")
    order = np.random.default_rng(100 + draw).permutation(len(dataset))
    training, asked = (
        dataset.rows(np.sort(order[:PROMPTS])),
        dataset.rows(np.sort(order[PROMPTS : PROMPTS + TESTED])),
    )
    config = SUITES[suite].config("category")
    config = config.model_copy(update={"objectives": {"quality": config.objectives["quality"]}})
    artifact = learn(training, counted(training, config, in_silence), config, in_silence).draft
    whole, bare = expected(artifact, asked)
    plain = plain_regression(training, asked)
    best = int((dataset.weights @ dataset.scores).argmax())
    return [gain(scores, asked, best) for scores in (plain, whole, bare)]


def expected(artifact: Artifact, asked: Dataset) -> tuple[Vector, Vector]:
    """[n, experts] twice: the scores that decide, and those of the categories alone."""
    scorer, manifest = Scorer(artifact), artifact.manifest
    found = [scorer.score(talk.turns, None) for talk in asked.conversations]
    table = np.array([[manifest.score[c][e].score for e in artifact.expert_names] for c in manifest.categories])
    return np.array([one.expected for one in found]), np.array([one.probabilities for one in found]) @ table


def plain_regression(training: Dataset, asked: Dataset) -> Vector:
    """[n, experts]: TF-IDF of words and characters, logistic regression, mean scores of each category, mixed."""
    kinds = (
        TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2)),
        TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(3, 5), analyzer="char_wb", max_features=50_000),
    )
    seen, unseen = ([talk.turns[-1].text for talk in part.conversations] for part in (training, asked))
    vectors = sp.hstack([kind.fit_transform(seen) for kind in kinds]).tocsr()
    model = LogisticRegression(C=10.0, max_iter=200).fit(vectors, training.labels)
    shares = model.predict_proba(sp.hstack([kind.transform(unseen) for kind in kinds]).tocsr())
    means = [
        np.average(training.scores[rows], axis=0, weights=training.weights[rows])
        for rows in (training.labels == category for category in model.classes_)
    ]
    return np.asarray(shares @ np.array(means))


def gain(scores: Vector, asked: Dataset, best: int) -> float:
    taken = asked.scores[np.arange(len(asked)), scores.argmax(axis=1)]
    return 100 * float(np.average(taken - asked.scores[:, best], weights=asked.weights))


def table(suite: str, gains: Vector) -> list[str]:
    """Means over the draws [draws, routers] with standard errors, and paired differences from the first router."""
    lines = [
        f"{suite}: {PROMPTS} prompts, {len(gains)} draws",
        "| router | gain, points | standard error | less plain |",
        "|---|---|---|---|",
    ]
    for name, row in zip(ROUTERS, gains.T, strict=True):
        less = row - gains[:, 0]
        lines.append(f"| {name} | {row.mean():+.2f} | {error(row):.2f} | {less.mean():+.2f} ({error(less):.2f}) |")
    return lines


def error(values: Vector) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
