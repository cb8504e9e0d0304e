"""`coe-train evaluate`, `compare`, `report` and `probe`: what a router is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coe_server.errors import ConfigError, DatasetError
from coe_server.routing import artifact as artifacts
from coe_server.routing.probes import read_probes, run_probe
from coe_server.routing.router import Router
from coe_server.system.files import require_writable_file
from coe_server.system.visible import visible
from router_training.commands.terminal import (
    EXIT_PROBE_FAILED,
    console,
    mistakes_as_sentences,
    preparation,
    with_progress_bar,
)
from router_training.config import DEFAULT_LABEL, MOST_RESAMPLES


def evaluate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder.")],
    prompts: Annotated[list[Path], typer.Option(help="Prompts, JSONL or Parquet; may be given several times.")],
    outcomes: Annotated[list[Path], typer.Option(help="Outcomes of the artifact's experts; several times too.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers.")] = None,
    label: Annotated[str, typer.Option(help="The column with the true category, if there is one.")] = DEFAULT_LABEL,
    resamples: Annotated[
        int, typer.Option(min=100, max=MOST_RESAMPLES, help="Bootstrap resamples for the intervals.")
    ] = 1000,
    config: Annotated[
        Path | None, typer.Option(help="The training config, where its features are embeddings by a model or endpoint.")
    ] = None,
) -> None:
    """Measure a router on recorded outcomes, through the code that serves it.

    Prints the main figures; --json writes all, with the keys of the artifact's evaluation.json. Only prompts with an
    outcome from every expert count. Objectives that are not shipped are measured too.

    Example: coe-train evaluate artifacts/router --prompts prompts.jsonl --outcomes outcomes.jsonl
    """
    with mistakes_as_sentences():
        from router_training.data.dataset import read_dataset
        from router_training.data.trained_on import prompts_trained_on
        from router_training.evaluation.evaluation import evaluate as evaluate_artifact
        from router_training.evaluation.metrics import Bootstrap
        from router_training.evaluation.summary import show_evaluation

        if json_file is not None:
            require_writable_file("--json", json_file)
        loaded = artifacts.load(artifact)
        prepare = preparation(loaded, config)
        dataset = prepare(read_dataset(prompts, outcomes, loaded.expert_names, label))
        if label != DEFAULT_LABEL and not dataset.categories:
            raise DatasetError(f"--label: no prompt has a {label!r}")
        bootstrap = Bootstrap(resamples, loaded.manifest.seed)
        known = prompts_trained_on(artifact, loaded, dataset)
        evaluation = evaluate_artifact(loaded, dataset, bootstrap, with_progress_bar, prepare)
        evaluation["n_trained_on"] = known
        show_evaluation(evaluation, Console())
        if json_file is not None:
            text = json.dumps(evaluation, indent=2, ensure_ascii=False)
            json_file.write_text(text + "\n", encoding="utf-8", errors="replace")
            console.print(f"all numbers: {json_file}", markup=False)


def compare(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="feedback.jsonl of `coe journal export`.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers.")] = None,
) -> None:
    """Estimate from a server's log how a shadow router would have done, and how each version that served did.

    Only disagreements are estimated, from answers of the shadow's expert that were drawn (router.exploration) or
    compared (router.compare); with fewer than 30 of them nothing is known. Sources of ratings are never mixed.

    Example: coe-train compare journal/feedback.jsonl
    """
    with mistakes_as_sentences():
        from router_training.comparison import compare as compare_routers
        from router_training.comparison import lines_of

        if json_file is not None:
            require_writable_file("--json", json_file)
        found = compare_routers(log)
        for line in lines_of(found):
            typer.echo(visible(line))
        if json_file is not None:
            json_file.write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")


def report(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder.")]) -> None:
    """Write report.html again: one page with charts and tables on the router's gains and failures.

    Example: coe-train report artifacts/router
    """
    with mistakes_as_sentences():
        from router_training.report.page import write_report

        console.print(f"report: {write_report(artifact)}", markup=False)


def probe(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder.")]) -> None:
    """Route the prompts of probes.yaml and compare category and experts. Exit 1: a probe fails.

    Example: coe-train probe artifacts/router
    """
    with mistakes_as_sentences():
        from router_training.probes import print_results

        router = Router.load(artifact)
        probes = read_probes(artifact)
        if not probes:
            raise ConfigError(f"{artifact} has no probes; add some to probes.yaml, or let `coe-train fit` choose some")
        if router.artifact.manifest.features.embedded_before_routing:
            raise ConfigError("probes cannot be routed: this artifact's prompts must be embedded first")
        results = [run_probe(router, one) for one in probes]
        print_results(results)
        if any(result.failures for result in results):
            raise typer.Exit(EXIT_PROBE_FAILED)
