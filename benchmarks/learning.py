"""Learning while serving, replayed: of each request only the chosen expert's recorded outcome is seen.

Ten examples of each category draft the classifier; they, the requests and the test prompts are apart. Every request is
routed by the server's own router with `router.exploration: learn`, its outcome is one rating, and the table moves after
every 100 ratings, as in the server. Then the table is frozen and tried on the test prompts.

    python -m benchmarks.learning --data ../shared/data --write
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.document import document
from coe_server.build.drafts import as_saved
from coe_server.config.routes import RoutesFile
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions, RoutingDecision
from coe_server.routing.draft import draft
from coe_server.routing.evidence import RATINGS_PER_STEP, Turn, evidence, next_step
from coe_server.routing.router import Router

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DEFAULT_FOLDER = Path(__file__).parents[1].parent / "shared" / "data"
EXPERTS = ("qwen-7b", "gemma-2-9b", "gemma-2-27b", "llama-3.1-70b", "qwen-72b")
EXAMPLES, REQUESTS, ORDERS = 10, 5_000, 10
BEFORE_CHANGE, AFTER_CHANGE = 3_000, 2_000
LONGEST_EXAMPLE = 20_000
EPSILON = 0.1
CONFIDENCE = 0.05  # LinUCB's delta
SMALL_ALPHA = 0.2  # and a bonus that explores less than its formula
GOAL, HARM, AFTER_CHANGE_GOAL = 0.5, -0.3, 0.5


@dataclass(frozen=True, slots=True)
class Data:
    """n prompts: `texts`, `labels` [n] of `categories`, `weights` [n], and recorded `scores` [n, experts]."""

    texts: Sequence[str]
    categories: Sequence[str]
    labels: Ints
    weights: Vector
    scores: Vector


@dataclass(frozen=True, slots=True)
class Replay:
    """One order: `gain` of the frozen table over the best single expert on the test prompts, in points, and after each
    thousand requests; `regret`: score lost against the best single expert on the requests, by policy; `steps`."""

    gain: float
    on_the_way: tuple[float, ...]
    regret: dict[str, float]


def main() -> None:
    """Runs every order, prints the tables, and keeps them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--orders", type=int, default=ORDERS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="keep the tables in docs/benchmarks.md")
    options = parser.parse_args()
    if not (options.data / "coe5_dev.prompts.parquet").is_file():
        sys.exit(f"skipped: {options.data} has no coe5_dev.prompts.parquet; the recorded outcomes are not part of it")
    with ProcessPoolExecutor(options.jobs) as pool:
        run = partial(pool.map, chunksize=1)
        orders = range(options.orders)
        by_weight = list(run(partial(replayed, options.data, False), orders))
        in_row_order = list(run(partial(replayed, options.data, True), orders))
        changes = list(run(partial(after_a_change, options.data), orders))
    text = tables(by_weight, in_row_order, changes)
    print(text)
    if options.write:
        document("learning", text)


def replayed(folder: Path, in_row_order: bool, order: int) -> Replay:
    """One order of requests, drawn by weight; `in_row_order` sorts them as the file is, one topic after another."""
    data = read(folder)
    examples, pool, test = _parts(data, order)
    requests = _requests(data, pool, REQUESTS, order)
    if in_row_order:
        requests = np.sort(requests)
    service = Learner(data, examples, seed=order)
    gains = []
    for start in range(0, len(requests), 1_000):
        service.serve(requests[start : start + 1_000])
        gains.append(_gain(data, test, service.frozen(test)))
    best = float((data.scores[requests]).mean(axis=0).max())
    regret = {"learn": best * len(requests) - service.won}
    contexts = np.column_stack((np.array(service.contexts), np.ones(len(requests))))
    for name, policy in peers().items():
        regret[name] = best * len(requests) - policy(data.scores[requests], contexts, np.random.default_rng(order))
    return Replay(gains[-1], tuple(gains), regret)


def after_a_change(folder: Path, order: int) -> tuple[float, float]:
    """(score on the new topics after both, score of a learner that saw the new topics alone), in points."""
    data = read(folder)
    examples, pool, test = _parts(data, order)
    topics = np.random.default_rng(order).permutation(len(data.categories))
    is_new = np.isin(data.labels, topics[len(topics) // 2 :])
    old = _requests(data, pool[~is_new[pool]], BEFORE_CHANGE, order)
    new = _requests(data, pool[is_new[pool]], AFTER_CHANGE, order + 1)
    tried = test[is_new[test]]
    both, alone = Learner(data, examples, seed=order), Learner(data, examples, seed=order)
    both.serve(old)
    both.serve(new)
    alone.serve(new)
    return _score(data, tried, both.frozen(tried)), _score(data, tried, alone.frozen(tried))


class Learner:
    """A router drafted from `examples`, and the ratings of what it chose."""

    def __init__(self, data: Data, examples: Ints, seed: int) -> None:
        routes = {
            name: {
                "experts": list(EXPERTS),
                "examples": [data.texts[row][:LONGEST_EXAMPLE] for row in examples if data.labels[row] == label],
            }
            for label, name in enumerate(data.categories)
        }
        file = RoutesFile.model_validate({"routes": routes, "default": {"experts": list(EXPERTS)}})
        self._data = data
        self._router = Router(as_saved(draft(file)), exploration="learn")
        self._away = dict.fromkeys(EXPERTS, Availability("disk", 1.0))
        self._chance = np.random.default_rng(seed)
        self._turns: list[Turn] = []
        self._categories: dict[int, str] = {}
        self.contexts: list[list[float]] = []  # of each request, the classifier's probabilities
        self.won = 0.0

    def serve(self, requests: Ints) -> None:
        """Route the requests, see the chosen expert's outcome, and move the table as the server does."""
        for row in requests:
            decision = self._routed(int(row), float(self._chance.random()))
            score = float(self._data.scores[row, EXPERTS.index(decision.expert)])
            self.won += score
            self.contexts.append(list(decision.probabilities.values()))
            self._turns.append(_rated(decision, score, float(len(self._turns))))
            if len(self._turns) % RATINGS_PER_STEP == 0:
                known = self._router.learned
                found = evidence(self._turns, (), known.rows, known.columns)
                self._router.learned = next_step(found, known, seed=len(self._turns))

    def frozen(self, rows: Ints) -> Ints:
        """[rows]: the expert of each prompt without draws, by number. All prompts of a category have the same."""
        for row in rows.tolist():
            if row not in self._categories:
                self._categories[row] = str(self._routed(row, None).category)
        example_of = {self._categories[row]: row for row in rows.tolist()}
        expert_of = {name: EXPERTS.index(self._routed(row, None).expert) for name, row in example_of.items()}
        return np.array([expert_of[self._categories[row]] for row in rows.tolist()])

    def _routed(self, row: int, draw: float | None) -> RoutingDecision:
        return self._router.route(Conversation.of_prompt(self._data.texts[row]), RouteOptions(draw=draw), self._away)


def peers() -> dict[str, Callable[[Vector, Vector, np.random.Generator], float]]:
    """Policies by name: (scores [n, experts], contexts [n, d], chance) -> the total score that each earns."""
    by_formula = 1.0 + np.sqrt(np.log(2.0 / CONFIDENCE) / 2.0)
    return {
        f"epsilon-greedy without categories, {EPSILON:g}": epsilon_greedy,
        f"LinUCB, alpha {by_formula:.2f} by its formula": partial(lin_ucb, alpha=float(by_formula)),
        f"LinUCB, alpha {SMALL_ALPHA:g}": partial(lin_ucb, alpha=SMALL_ALPHA),
        "every expert alike": lambda scores, _, __: float(scores.mean(axis=1).sum()),
    }


def epsilon_greedy(scores: Vector, _: Vector, chance: np.random.Generator) -> float:
    """The best mean so far, and a random expert in a share of requests (Sutton and Barto, "Reinforcement Learning",
    2nd edition, 2018, section 2.4)."""
    totals, counts, won = np.zeros(scores.shape[1]), np.zeros(scores.shape[1]), 0.0
    for row in scores:
        means = np.divide(totals, counts, out=np.full(len(totals), np.inf), where=counts > 0)
        chosen = int(chance.integers(len(row))) if chance.random() < EPSILON else int(means.argmax())
        totals[chosen] += row[chosen]
        counts[chosen] += 1
        won += row[chosen]
    return float(won)


def lin_ucb(scores: Vector, contexts: Vector, _: np.random.Generator, alpha: float) -> float:
    """LinUCB with disjoint linear models (Li, Chu, Langford and Schapire, "A contextual-bandit approach to personalized
    news article recommendation", 2010, algorithm 1): the inverse of each design matrix is updated by one row."""
    experts, size = scores.shape[1], contexts.shape[1]
    inverses, sums, won = np.stack([np.eye(size)] * experts), np.zeros((experts, size)), 0.0
    for row, x in zip(scores, contexts, strict=True):
        reached = inverses @ x
        means = np.einsum("ed,ed->e", np.einsum("edf,ef->ed", inverses, sums), np.broadcast_to(x, sums.shape))
        chosen = int((means + alpha * np.sqrt(reached @ x)).argmax())
        column = reached[chosen]
        inverses[chosen] -= np.outer(column, column) / (1.0 + column @ x)
        sums[chosen] += row[chosen] * x
        won += row[chosen]
    return float(won)


def tables(by_weight: Sequence[Replay], in_row_order: Sequence[Replay], changes: Sequence[tuple[float, float]]) -> str:
    """The results as Markdown."""
    behind = [both - alone for both, alone in changes]
    lines = [
        "## Learning while serving",
        "",
        f"`python -m benchmarks.learning`, `coe5_dev`: the recorded outcomes of five experts, of which only the chosen"
        f" one's is seen. The classifier is drafted from {EXAMPLES} examples of each of 11 categories, nothing is known"
        f" of the experts. {REQUESTS:,} requests drawn by weight, {len(by_weight)} orders, each with other examples,"
        " requests and test prompts. The gain is that of the frozen table over the expert that is best on the test"
        " prompts in hindsight, in points.",
        "",
        "| requests | gain: mean | least | most | gain after 1,000, 2,000, ... requests | goal |",
        "|---|---|---|---|---|---|",
        _row("drawn by weight", by_weight, f"mean at least {GOAL:+.1f}, none below {HARM:.1f}"),
        _row("the same in row order, topic after topic", in_row_order, f"none below {HARM:.1f}"),
        "",
        f"After a change of topics ({BEFORE_CHANGE:,} requests of half of the categories, then {AFTER_CHANGE:,} of the"
        " others) the frozen table scores on the new topics, against that of the same learner that saw the new topics"
        f" alone: {np.mean(behind):+.2f} points on average ({min(behind):+.2f} to {max(behind):+.2f}; goal: within"
        f" {AFTER_CHANGE_GOAL:g}).",
        "",
        "Regret: answers lost while learning, against the expert that is best on these requests in hindsight.",
        "",
        "| policy | drawn by weight | row order |",
        "|---|---|---|",
    ]
    for name in by_weight[0].regret:
        both = (np.mean([one.regret[name] for one in runs]) for runs in (by_weight, in_row_order))
        lines.append(f"| {name} | {' | '.join(f'{value:.0f}' for value in both)} |")
    return "\n".join(lines)


def _row(name: str, runs: Sequence[Replay], goal: str) -> str:
    gains = [one.gain for one in runs]
    way = ", ".join(f"{value:+.2f}" for value in np.mean([one.on_the_way for one in runs], axis=0))
    return f"| {name} | {np.mean(gains):+.2f} | {min(gains):+.2f} | {max(gains):+.2f} | {way} | {goal} |"


def read(folder: Path) -> Data:
    """The prompts in the order of the file."""
    from router_training.data.dataset import read_dataset  # noqa: PLC0415 - the extra `train`

    files = [[folder / f"coe5_dev.{what}.parquet"] for what in ("prompts", "outcomes")]
    found = read_dataset(*files, EXPERTS, "category")
    texts = ["\n".join(turn.text for turn in one.turns) for one in found.conversations]
    return Data(texts, found.categories, found.labels, found.weights, found.scores)


def _parts(data: Data, order: int) -> tuple[Ints, Ints, Ints]:
    """(examples, prompts for requests, test prompts), apart."""
    shuffled = np.random.default_rng(order).permutation(len(data.texts))
    examples = np.concatenate([shuffled[data.labels[shuffled] == c][:EXAMPLES] for c in range(len(data.categories))])
    others = shuffled[~np.isin(shuffled, examples)]
    return examples, others[: len(others) // 2], others[len(others) // 2 :]


def _requests(data: Data, pool: Ints, count: int, seed: int) -> Ints:
    shares = data.weights[pool] / data.weights[pool].sum()
    return np.asarray(np.random.default_rng(seed).choice(pool, count, p=shares))


def _rated(decision: RoutingDecision, score: float, time: float) -> Turn:
    drawn = decision.exploration
    assert drawn is not None, "several experts were free"
    return Turn(
        time,
        decision.decision_id,
        drawn.category,
        drawn.drawn,
        decision.expert,
        drawn.probabilities,
        drawn.expected,
        {"exact": score},
    )


def _score(data: Data, rows: Ints, chosen: Ints) -> float:
    return float(100.0 * np.average(data.scores[rows, chosen], weights=data.weights[rows]))


def _gain(data: Data, rows: Ints, chosen: Ints) -> float:
    best = np.average(data.scores[rows], axis=0, weights=data.weights[rows]).max()
    return _score(data, rows, chosen) - float(100.0 * best)


if __name__ == "__main__":
    main()
