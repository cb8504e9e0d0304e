"""Learning while serving, replayed: of each request only the chosen expert's recorded outcome is seen.

Ten examples of each category draft the classifier; they, the requests and the test prompts are apart. Every request is
decided by the server's own code with `router.exploration: learn`, its outcome is one rating, and the table moves after
every 100 ratings, as in the server. Then the table is frozen and tried on the test prompts. A prompt is classified
once for all replays of an order.

    python -m benchmarks.learning --data ../shared/data --write
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.document import document
from coe_server.build.drafts import as_saved
from coe_server.config.routes import RoutesFile
from coe_server.routing.capabilities import Profile, Request
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.evidence import RATINGS_PER_STEP, evidence, next_step
from coe_server.routing.evidence import Turn as RatedTurn
from coe_server.routing.exploration import Learned, nothing_learned
from coe_server.routing.features import Turn
from coe_server.routing.own_routes.choice import OwnRoutes
from coe_server.routing.own_routes.draft import draft
from coe_server.routing.scoring import PromptScores, Scorer
from coe_server.routing.selection import Choice

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DEFAULT_FOLDER = Path(__file__).parents[1].parent / "shared" / "data"
EXPERTS = ("qwen-7b", "gemma-2-9b", "gemma-2-27b", "llama-3.1-70b", "qwen-72b")
EXAMPLES, REQUESTS, ORDERS = 10, 5_000, 10
BEFORE_CHANGE, AFTER_CHANGE = 3_000, 2_000
LONGEST_EXAMPLE = 20_000
REQUESTED, DRAWN = 1, 2  # seeds of independent chances within an order
EPSILON = 0.1
CONFIDENCE = 0.05  # LinUCB's delta
SMALL_ALPHA = 0.2  # and a bonus that explores less than its formula
NO_TEXT = Conversation.of_prompt("")  # rules and lengths play no part here
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
    thousand requests; `regret`: score lost against the best single expert on the requests, by policy."""

    gain: float
    on_the_way: tuple[float, ...]
    regret: dict[str, float]


def main() -> None:
    """Runs every order, prints the tables, and keeps them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--orders", type=int, default=ORDERS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for finished orders; a later run goes on")
    parser.add_argument("--write", action="store_true", help="keep the tables in docs/benchmarks.md")
    options = parser.parse_args()
    if not (options.data / "coe5_dev.prompts.parquet").is_file():
        sys.exit(f"skipped: {options.data} has no coe5_dev.prompts.parquet; the recorded outcomes are not part of it")
    found: list[Order] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for one in pool.map(partial(kept, options.data, options.keep), range(options.orders), chunksize=1):
            found.append(one)
            print(f"{len(found)} of {options.orders}: {one}", file=sys.stderr, flush=True)
    text = tables([one.by_weight for one in found], [one.in_rows for one in found], [one.change for one in found])
    print(text)
    if options.write:
        document("learning", text)


@dataclass(frozen=True, slots=True)
class Order:
    """The replays of one order; `change`: scores on new topics, of a learner that saw both and of one that saw these
    alone."""

    by_weight: Replay
    in_rows: Replay
    change: tuple[float, float]


def kept(folder: Path, keep: Path | None, order: int) -> Order:
    """The replays of an order, from the folder of finished ones if they are there."""
    if keep is None:
        return replays(folder, order)
    file = keep / f"order{order}.json"
    if not file.exists():
        keep.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(replays(folder, order))))
    plain = json.loads(file.read_text())
    by_weight, in_rows = (Replay(**plain[name]) for name in ("by_weight", "in_rows"))
    return Order(by_weight, in_rows, tuple(plain["change"]))


def replays(folder: Path, order: int) -> Order:
    """All replays with the same examples, drawn by `order`."""
    data = read(folder)
    examples, pool, test = _parts(data, order)
    routes = Routes(data, examples)
    requests = _requests(data, pool, REQUESTS, order)
    return Order(
        replayed(data, routes, requests, test, order),
        replayed(data, routes, np.sort(requests), test, order),
        after_a_change(data, routes, pool, test, order),
    )


def replayed(data: Data, routes: Routes, requests: Ints, test: Ints, order: int) -> Replay:
    """One sequence of requests. Sorted, they come as in the file: one topic after another."""
    service = Learner(data, routes, seed=order)
    gains = []
    for start in range(0, len(requests), 1_000):
        service.serve(requests[start : start + 1_000])
        gains.append(_gain(data, test, service.frozen(test)))
    best = float((data.scores[requests]).mean(axis=0).max())
    regret = {"learn": best * len(requests) - service.won}
    shares = [routes.scores(row).probabilities for row in requests.tolist()]
    contexts = np.column_stack((np.array(shares), np.ones(len(requests))))
    for name, policy in peers().items():
        regret[name] = best * len(requests) - policy(
            data.scores[requests], contexts, np.random.default_rng((DRAWN, order))
        )
    return Replay(gains[-1], tuple(gains), regret)


def after_a_change(data: Data, routes: Routes, pool: Ints, test: Ints, order: int) -> tuple[float, float]:
    """(score on the new topics after both, score of a learner that saw the new topics alone), in points."""
    topics = np.random.default_rng(order).permutation(len(data.categories))
    is_new = np.isin(data.labels, topics[len(topics) // 2 :])
    old = _requests(data, pool[~is_new[pool]], BEFORE_CHANGE, order)
    new = _requests(data, pool[is_new[pool]], AFTER_CHANGE, order + 1)
    tried = test[is_new[test]]
    both, alone = Learner(data, routes, seed=order), Learner(data, routes, seed=order)
    both.serve(old)
    both.serve(new)
    alone.serve(new)
    return _score(data, tried, both.frozen(tried)), _score(data, tried, alone.frozen(tried))


class Routes:
    """Routes drafted from `examples`; each prompt is classified once."""

    def __init__(self, data: Data, examples: Ints) -> None:
        written = {
            name: {
                "experts": list(EXPERTS),
                "examples": [data.texts[row][:LONGEST_EXAMPLE] for row in examples if data.labels[row] == label],
            }
            for label, name in enumerate(data.categories)
        }
        file = RoutesFile.model_validate({"routes": written, "default": {"experts": list(EXPERTS)}})
        artifact = as_saved(draft(file))
        self.unlearned = nothing_learned(artifact.manifest.categories, artifact.expert_names)
        self._texts = data.texts
        self._scorer = Scorer(artifact)
        self._routes = OwnRoutes.of(artifact, {name: Profile(name) for name in EXPERTS}, self._scorer)
        self._scores: dict[int, PromptScores] = {}
        self._away = dict.fromkeys(EXPERTS, Availability("disk", 1.0))

    def scores(self, row: int) -> PromptScores:
        if row not in self._scores:
            self._scores[row] = self._scorer.score((Turn(self._texts[row]),), None)
        return self._scores[row]

    def choose(self, row: int, draw: float | None, known: Learned) -> Choice:
        """The server's choice for this prompt."""
        request = Request(NO_TEXT, RouteOptions(draw=draw), self._away)
        return self._routes.choose(self.scores(row), request, "learn", known)[1]


class Learner:
    """The table of `routes`, and the ratings of what was chosen."""

    def __init__(self, data: Data, routes: Routes, seed: int) -> None:
        self._data = data
        self._routes = routes
        self._known = routes.unlearned
        self._chance = np.random.default_rng((DRAWN, seed))  # requests must not decide draws
        self._turns: list[RatedTurn] = []
        self.won = 0.0

    def serve(self, requests: Ints) -> None:
        """Decide the requests, see the chosen expert's outcome, and move the table as the server does."""
        for row in requests.tolist():
            chosen = self._routes.choose(row, float(self._chance.random()), self._known)
            score = float(self._data.scores[row, EXPERTS.index(chosen.expert.name)])
            self.won += score
            self._turns.append(_rated(chosen, score, len(self._turns)))
            if len(self._turns) % RATINGS_PER_STEP == 0:
                found = evidence(self._turns, (), self._known.rows, self._known.columns)
                self._known = next_step(found, self._known, seed=len(self._turns))

    def frozen(self, rows: Ints) -> Ints:
        """[rows]: the expert of each prompt without draws, by number."""
        chosen = (self._routes.choose(row, None, self._known) for row in rows.tolist())
        return np.array([EXPERTS.index(one.expert.name) for one in chosen])


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
        _row("drawn by weight", by_weight, f"mean at least {GOAL:+.1f}, none below {HARM:.1f}", GOAL),
        _row("the same in row order, topic after topic", in_row_order, f"none below {HARM:.1f}", -np.inf),
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


def _row(name: str, runs: Sequence[Replay], goal: str, least_mean: float) -> str:
    gains = [one.gain for one in runs]
    missed = sum(gain < HARM for gain in gains)
    is_met = not missed and np.mean(gains) >= least_mean
    goal += ": met" if is_met else f": missed, {missed} of {len(gains)} orders are below"
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
    return np.asarray(np.random.default_rng((REQUESTED, seed)).choice(pool, count, p=shares))


def _rated(chosen: Choice, score: float, number: int) -> RatedTurn:
    drawn = chosen.exploration
    assert drawn is not None, "several experts were free"
    answered, chances = chosen.expert.name, drawn.probabilities
    return RatedTurn(
        float(number), str(number), drawn.category, drawn.drawn, answered, chances, drawn.expected, {"exact": score}
    )


def _score(data: Data, rows: Ints, chosen: Ints) -> float:
    return float(100.0 * np.average(data.scores[rows, chosen], weights=data.weights[rows]))


def _gain(data: Data, rows: Ints, chosen: Ints) -> float:
    best = np.average(data.scores[rows], axis=0, weights=data.weights[rows]).max()
    return _score(data, rows, chosen) - float(100.0 * best)


if __name__ == "__main__":
    main()
