"""Does the controller keep a budget? Routes held-out prompts one after the other and prints the last 1,000's cost.

    python -m benchmarks.budget_window train.yaml [--orders 20] [--in-flight 64]

Each budget of the config is tried with the controller and with the stored multiplier alone, on prompts in random order
and on traffic that changes halfway. A request's cost is known to the controller `--in-flight` decisions later.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.config import TrainingConfig, read_config
from router_training.data.dataset import Dataset, read_dataset
from router_training.data.split import split
from router_training.fit import fit

WINDOW = 1000
HELD_OUT_SHARE = 0.2

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One pass over a stream: the cost of each request, and the mean score."""

    costs: npt.NDArray[np.float64]
    score: float

    def last(self, count: int) -> float:
        return float(self.costs[-count:].mean())


def main() -> None:
    """Fits on 80 % of the prompts, streams the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--orders", type=int, default=20, help="random orders per budget")
    parser.add_argument("--in-flight", type=int, default=0, help="decisions made before the first is answered")
    asked = parser.parse_args()
    config = read_config(asked.config)
    data = config.data
    dataset = read_dataset(data.prompts, data.outcomes, config.expert_names, data.label)
    # with the seed of fit's own split, these would be its held-out prompts
    sides = split(dataset, HELD_OUT_SHARE, config.seed + 1)
    training, held_out = sides.training, sides.held_out
    held_out = held_out.rows(np.flatnonzero(held_out.has_all_outcomes))
    with tempfile.TemporaryDirectory() as folder:
        artifact = fit(_only(training, config, Path(folder)), Path(folder) / "router", True, in_silence).folder
        print(f"{len(training)} training prompts, {len(held_out)} streamed, {asked.in_flight} in flight")
        for objective, settings in config.objectives.items():
            if settings.active_params_b is not None:
                _report(
                    artifact,
                    held_out,
                    objective,
                    settings.active_params_b,
                    orders=asked.orders,
                    in_flight=asked.in_flight,
                )


def _only(training: Dataset, config: TrainingConfig, folder: Path) -> TrainingConfig:
    """The config on the training prompts alone."""
    kept = pa.array(training.prompt_ids)
    paths = []
    for number, path in enumerate(config.data.prompts):
        table = pq.read_table(path)
        paths.append(folder / f"{number}.parquet")
        pq.write_table(table.filter(pa.compute.is_in(table["prompt_id"], kept)), paths[-1])
    return config.model_copy(update={"data": config.data.model_copy(update={"prompts": paths})})


def _report(artifact: Path, held_out: Dataset, objective: str, target: float, *, orders: int, in_flight: int) -> None:
    print(f"\n{objective}: {target:g} B")
    print(f"{'stream':<38}{'all':>8}{'last 1000':>11}{'worst':>9}{'within 1 %':>12}{'score':>8}")
    for name, streams in (("random order", _shuffled), ("mix changes at half time", _drifting)):
        for window in (0, WINDOW):
            runs = [
                _stream(artifact, held_out, order, objective, window=window, in_flight=in_flight)
                for order in streams(held_out, orders)
            ]
            last = np.array([run.last(WINDOW) for run in runs])
            off = np.abs(last / target - 1.0)
            label = f"{name}, {'controller' if window else 'stored'}"
            print(
                f"{label:<38}{np.mean([run.costs.mean() for run in runs]):8.2f}{last.mean():11.2f}"
                f"{100 * off.max():8.2f}%{f'{int((off <= 0.01).sum())} of {len(runs)}':>12}"
                f"{100 * np.mean([run.score for run in runs]):8.2f}"
            )


def _shuffled(held_out: Dataset, orders: int) -> list[Ints]:
    return [np.random.default_rng(seed).permutation(len(held_out)) for seed in range(orders)]


def _drifting(held_out: Dataset, orders: int) -> list[Ints]:
    """A random half of the categories first, then the others, each half drawn 2,000 times with replacement."""
    streams = []
    for seed in range(orders):
        generator = np.random.default_rng(seed)
        early = generator.random(len(held_out.categories)) < 0.5
        first, second = np.flatnonzero(early[held_out.labels]), np.flatnonzero(~early[held_out.labels])
        if len(first) and len(second):
            streams.append(np.concatenate((generator.choice(first, 2 * WINDOW), generator.choice(second, 2 * WINDOW))))
    return streams


def _stream(artifact: Path, held_out: Dataset, order: Ints, objective: str, *, window: int, in_flight: int) -> Run:
    router = Router.load(artifact, budget_window=window)
    sizes = {expert.name: expert.active_params_b for expert in router.artifact.manifest.experts}
    nearby = dict.fromkeys(router.expert_names, Availability("disk", 0.0))
    options = RouteOptions(objective=objective)
    in_progress: deque[ExitStack] = deque()
    costs, scores = [], []
    for row in order:
        decision = router.route(held_out.conversations[row], options, nearby)
        scores.append(held_out.scores[row, held_out.experts.index(decision.expert)])
        costs.append(sizes[decision.expert])
        request = ExitStack()
        request.callback(request.enter_context(router.spending(decision)))
        in_progress.append(request)
        if len(in_progress) > in_flight:
            in_progress.popleft().close()
    return Run(np.array(costs), float(np.mean(scores)))


if __name__ == "__main__":
    main()
