"""`coe-train fit`, `draft` and `map`: each makes an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from coe_server.config.file import read_settings_file
from coe_server.errors import ConfigError
from coe_server.routing import artifact as artifacts
from coe_server.system.visible import visible
from router_training.commands.terminal import (
    EXIT_REFUSED,
    console,
    mistakes_as_sentences,
    preparation,
    with_progress_bar,
)
from router_training.config import read_config
from router_training.measured_costs import measured_cost_factors

if TYPE_CHECKING:
    from router_training.fit import FitResult


def fit(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="The training config (YAML); its paths are relative to it.")
    ],
    out: Annotated[Path, typer.Option(help="The artifact's folder. An artifact already there is replaced.")],
    force: Annotated[
        bool, typer.Option("--force", help="Serve every objective, whatever its gain; marked as forced.")
    ] = False,
) -> None:
    """Train a router and write its artifact.

    An objective is shipped if it passes three tests. In cross-validation its gain is certain: over the best single
    expert or, under a budget, over a random mix of experts at the same cost. It does no harm on groups left out. And on
    held-out prompts it does not certainly lose.
    Where outcomes have log-probabilities, it also finds whether unsure answers should be handed over to another expert.
    Exit 0: shipped. Exit 3: no objective earned it, the artifact is in OUT.refused. Exit 2: wrong input.

    Example: coe-train fit train.yaml --out artifacts/router
    """
    with mistakes_as_sentences():
        settings = read_config(config)  # before the import, which takes seconds: a mistake is reported at once
        raw = read_settings_file(config, "`coe config --example train`")
        for name, factor in measured_cost_factors(raw, config.resolve().parent).items():
            console.print(f"{name}: cost_factor {factor:g}, measured from output tokens", markup=False)
        from router_training.fit import fit as run_fit

        result = run_fit(settings, out, force, with_progress_bar)
        _report(result)
        if not result.shipped:
            raise typer.Exit(EXIT_REFUSED)


def draft(
    routes: Annotated[
        Path,
        typer.Argument(metavar="ROUTES", help="The routes (YAML); `coe config --example routes` explains every key."),
    ],
    out: Annotated[Path, typer.Option(help="The artifact's folder. An artifact already there is replaced.")],
    show: Annotated[bool, typer.Option("--show", help="Print how each example is routed by the others.")] = False,
    prompts: Annotated[list[Path], typer.Option(help="Prompts of outcomes; may be given several times.")] = [],  # noqa: B006
    outcomes: Annotated[list[Path], typer.Option(help="Outcomes with log-probabilities.")] = [],  # noqa: B006
) -> None:
    """Make a router from a few examples of each route, without recorded outcomes.

    `coe serve` with router.routes does the same at its start. Each example is also routed by the others alone: the
    share that reaches its route says how well the examples tell the routes apart. --prompts and --outcomes do not
    change how it routes: they say how likely an answer is right by its first tokens, and when it is handed over.

    Example: coe-train draft routes.yaml --out router --show
    """
    with mistakes_as_sentences():
        from router_training.draft_routes import draft_routes, show_draft

        if bool(prompts) != bool(outcomes):
            raise ConfigError("--prompts and --outcomes belong together: give both or neither")
        found = draft_routes(routes, out, prompts, outcomes)
        show_draft(found, routes, Console(), every=show)
        console.print(f"artifact: {out}", markup=False)


def map_(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder.")],
    out: Annotated[Path, typer.Option(help="The new artifact's folder.")],
    budget: Annotated[list[float], typer.Option(help="A new objective budget-Bb: mean active parameters, B.")] = [],  # noqa: B006 - typer makes it
    objective: Annotated[list[str], typer.Option(metavar="NAME=B", help="A new objective of this name.")] = [],  # noqa: B006
    hosted_budget: Annotated[float | None, typer.Option(help="Total parameters of all experts in use, B.")] = None,
    max_experts: Annotated[int | None, typer.Option(min=1, help="Experts in use, at most.")] = None,
    pin: Annotated[list[str], typer.Option(metavar="CATEGORY=EXPERT", help="The expert that answers a category.")] = [],  # noqa: B006
    ban: Annotated[list[str], typer.Option(metavar="CATEGORY=EXPERT", help="An expert that never answers it.")] = [],  # noqa: B006
    prompts: Annotated[list[Path], typer.Option(help="Prompts that outcomes are given for.")] = [],  # noqa: B006
    outcomes: Annotated[list[Path], typer.Option(help="Outcomes of a new expert, or of all to measure.")] = [],  # noqa: B006
    feedback: Annotated[
        Path | None, typer.Option(help="feedback.jsonl of `coe journal export`: ratings that move the scores.")
    ] = None,
    expert: Annotated[
        list[str], typer.Option(metavar="NAME=ACTIVE,TOTAL[,PRICE]", help="A new expert; parameters in B.")
    ] = [],  # noqa: B006
    config: Annotated[
        Path | None, typer.Option(help="The training config, where its features are embeddings by a model or endpoint.")
    ] = None,
) -> None:
    """Solve an artifact's mapping again for new budgets, limits or experts; the classifier stays.

    Multipliers are fitted on the out-of-fold predictions kept in the artifact. A new expert needs its outcomes only.
    With outcomes of every expert, all objectives are measured again and shipped or refused. Without them, a new or
    changed objective is served and marked as not measured, and a refused one stays refused.
    Ratings (--feedback) adjust an expert's scores: docs/feedback.md.
    The budget counts in the artifact's unit: billions of active parameters, or the price where sizes are unknown.

    Example: coe-train map artifacts/router --out artifacts/tight --objective tight=12
    """
    with mistakes_as_sentences():
        from router_training.data.embeddings import nothing_to_embed
        from router_training.map_options import read_limits, read_map_options
        from router_training.remap import chosen_shares, print_table, print_worth, remap

        options = read_map_options(
            budgets=budget,
            objectives=objective,
            limits=read_limits(hosted_budget, max_experts, pin, ban),
            experts=expert,
            prompts=prompts,
            outcomes=outcomes,
            feedback=feedback,
        )
        prepare = preparation(artifacts.load(artifact), config) if options.prompts else nothing_to_embed
        solved = remap(artifact, out, options, with_progress_bar, prepare)
        print_worth(out)
        print_table(solved, chosen_shares(out))
        console.print(f"artifact: {out}", markup=False)


def _report(result: FitResult) -> None:
    from router_training.evaluation.handover_evidence import handover_sentences
    from router_training.evaluation.worth import worth_sentence
    from router_training.report.page import REPORT

    evaluation = result.evaluation
    router, best = evaluation["router"], evaluation["best_single"]
    console.print(worth_sentence(evaluation), markup=False, soft_wrap=True)
    console.print(
        f"held-out prompts: {evaluation['n_prompts']}; best single expert {best['expert']} {100 * best['score']:.2f},"
        f" router {100 * router['score']:.2f} at {router['mean_active_params_b']:.4g} B mean active parameters"
    )
    same = evaluation["near_duplicates"]
    if same["prompts"]:
        console.print(
            f"near-duplicates: {same['prompts']} prompts, {same['moved']} moved to the other side,"
            f" {same['across_split']} sets on both sides (details: coe-train check)"
        )
    for name, reason in result.refusals.items():
        verdict = _shipped(evaluation["cross_validated"][name]) if reason is None else f"not shipped: {reason}"
        if (why := result.forced.get(name)) is not None:
            verdict = f"forced (--force), not earned: {why}"
        console.print(f"  {name}: {verdict}", markup=False)
    for sentence in handover_sentences(evaluation):
        console.print(f"  {sentence}", markup=False, soft_wrap=True)
    for failure in result.failing_probes:
        console.print(f"note: a {visible(failure)}", style="yellow", markup=False)
    console.print(f"artifact: {result.folder}", markup=False)
    console.print(f"report: {result.folder / REPORT}", markup=False)


def _shipped(evidence: Mapping[str, Any]) -> str:
    """The verdict with the gain that it rests on: the held-out prompts alone are often too few for one."""
    low, high = (100 * bound for bound in evidence["gain_ci95"])
    return f"shipped: cross-validated {100 * evidence['gain']:+.2f} points ({low:+.2f} to {high:+.2f})"
