"""What routing gains with few prompts, beside plain logistic regression with soft mixing, on the same draws.

Each draw trains on 400 prompts as `coe-train fit` would, and asks others. Needs ../shared/data, which is not part of
the project. Takes half a minute of processor time for each data set; `--write` keeps the table.

    python -m benchmarks.few_prompts --suites nine
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.document import document
from benchmarks.plain_regression import plain_regression
from benchmarks.routing_quality import DATA, SUITES, dataset_of
from coe_server.routing.artifact import Artifact
from coe_server.routing.scoring import Scorer
from router_training import in_silence
from router_training.cross_fit.draft import counted, learn
from router_training.data.dataset import Dataset

Vector = npt.NDArray[np.float64]

PROMPTS, TESTED, DRAWS = 400, 1_500, 10
ROUTERS = (
    "plain logistic regression, soft mixing (TF-IDF of words and characters)",
    "this router",
    "this router without gate and corrections",
    "the expert that is best on the 400",
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One draw: the gain of each router over the best single expert in hindsight, in points, and the share of the
    tested prompts outside the gate."""

    gains: tuple[float, ...]
    outside: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--suites", nargs="+", default=["nine", "coe5"], choices=list(SUITES))
    options.add_argument("--draws", type=int, default=DRAWS)
    options.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    asked = options.parse_args()
    if not DATA.is_dir():
        sys.exit(f"skipped: {DATA} is not there; the recorded outcomes are not part of the project")
    lines = head(asked.draws)
    for suite in asked.suites:
        lines += rows(suite, [drawn(suite, draw) for draw in range(asked.draws)])
    print("\n".join(lines))
    if asked.write:
        document("few_prompts", "\n".join(lines))


def drawn(suite: str, draw: int) -> Drawn:
    dataset = dataset_of(suite, "category")
    order = np.random.default_rng(100 + draw).permutation(len(dataset))
    training = dataset.rows(np.sort(order[:PROMPTS]))
    asked = dataset.rows(np.sort(order[PROMPTS : PROMPTS + TESTED]))
    config = SUITES[suite].config("category")
    config = config.model_copy(update={"objectives": {"quality": config.objectives["quality"]}})
    artifact = learn(training, counted(training, config, in_silence), config, in_silence).draft
    whole, bare, outside = expected(artifact, asked)
    plain = plain_regression(training, asked)
    single = np.broadcast_to(training.weights @ training.scores, asked.scores.shape)
    best = int((dataset.weights @ dataset.scores).argmax())
    return Drawn(tuple(gain(scores, asked, best) for scores in (plain, whole, bare, single)), outside)


def expected(artifact: Artifact, asked: Dataset) -> tuple[Vector, Vector, float]:
    """[n, experts] twice: the scores that decide, and those of the categories alone; the share outside the gate."""
    scorer, manifest = Scorer(artifact), artifact.manifest
    found = [scorer.score(talk.turns, None) for talk in asked.conversations]
    table = np.array([[manifest.score[c][e].score for e in artifact.expert_names] for c in manifest.categories])
    bare = np.array([one.probabilities for one in found]) @ table
    return np.array([one.expected for one in found]), bare, float(np.mean([not one.gate.inside for one in found]))


def gain(scores: Vector, asked: Dataset, best: int) -> float:
    taken = asked.scores[np.arange(len(asked)), scores.argmax(axis=1)]
    return 100 * float(np.average(taken - asked.scores[:, best], weights=asked.weights))


def head(draws: int) -> list[str]:
    return [
        "## Routing with 400 prompts",
        "",
        f"`python -m benchmarks.few_prompts`: {PROMPTS} prompts drawn at random for training, {TESTED:,} others asked,"
        f" {draws} draws. The gain is over the best single expert in hindsight; standard errors are over the draws,"
        " differences are paired. The goal: not below plain logistic regression by more than one standard error, and"
        " not below the best single expert.",
        "",
        "| data | router | gain, points | standard error | less plain logistic regression | outside the gate |",
        "|---|---|---|---|---|---|",
    ]


def rows(suite: str, draws: list[Drawn]) -> list[str]:
    """Means over the draws, with standard errors and paired differences from the first router."""
    gains = np.array([draw.gains for draw in draws])
    outside = float(np.mean([draw.outside for draw in draws]))
    lines = []
    for name, row in zip(ROUTERS, gains.T, strict=True):
        less = row - gains[:, 0]
        paired = "" if name == ROUTERS[0] else f"{less.mean():+.2f} ({error(less):.2f})"
        share = f"{outside:.1%}" if name == ROUTERS[1] else ""
        lines.append(f"| {suite} | {name} | {row.mean():+.2f} | {error(row):.2f} | {paired} | {share} |")
    return lines


def error(values: Vector) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
