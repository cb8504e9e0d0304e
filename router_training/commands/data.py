"""`coe-train prompts`, `collect`, `check` and `ask`: the data that a router is trained from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coe_server.system.interruption import EXIT_INTERRUPTED
from router_training.commands.terminal import (
    EXIT_INCOMPLETE,
    EXIT_WRONG_INPUT,
    console,
    mistakes_as_sentences,
    with_progress_bar,
)
from router_training.config import read_config


def prompts(
    routes: Annotated[
        Path, typer.Argument(metavar="ROUTES", help="The routes (YAML): their examples say what to write.")
    ],
    expert: Annotated[str, typer.Option("--from", help="The expert that writes, by its name at the endpoint.")],
    out: Annotated[Path, typer.Option(help="The prompts file to write, .jsonl; one already there is replaced.")],
    per_category: Annotated[int, typer.Option(min=1, max=1000, help="Prompts for each route with examples.")] = 50,
    base_url: Annotated[str, typer.Option(help="The service, or any endpoint.")] = "http://127.0.0.1:8080/v1",
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with its key.")] = None,
) -> None:
    """Have an expert write prompts like the examples of each route, for `collect` and `fit`.

    They are marked synthetic: training uses them, and nothing is measured on them. Near-duplicates are dropped. An
    expert may be better at its own prompts than at users': `coe-train check` says by how much.
    Exit 0: as many as asked for. Exit 4: fewer. Exit 2: none, or wrong input.

    Example: coe-train prompts routes.yaml --from generalist --out synthetic.jsonl
    """
    with mistakes_as_sentences():
        from coe_server.config.routes import read_routes
        from router_training.collect.bars import TerminalBars
        from router_training.collect.endpoint import Endpoint
        from router_training.collect.settings import api_key, base_url_option, proxy_for
        from router_training.collect.synthetic import OPTIONS, show_written, write_prompts

        address = base_url_option("--base-url", base_url)
        key, proxy = api_key(api_key_env, "--api-key-env"), proxy_for(address)
        endpoint = Endpoint(address, expert, key, OPTIONS, timeout_seconds=300.0, retries=2, proxy=proxy)
        with TerminalBars(console) as bars:
            written = write_prompts(read_routes(routes), endpoint, per_category, out, bars)
        if not show_written(written, per_category, out, console):
            raise typer.Exit(EXIT_INCOMPLETE)


def collect(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="Experts and scorer (YAML); `coe config --example collect` explains every key."
        ),
    ],
    prompts: Annotated[list[Path], typer.Option(help="Prompts, JSONL or Parquet; may be given several times.")],
    out: Annotated[Path, typer.Option(help="The outcomes to write: .jsonl or .parquet.")],
    raw: Annotated[
        Path | None, typer.Option(help="File of all raw answers and verdicts. Default: OUT as .raw.jsonl.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="The service's address, instead of base_url.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show what would be sent.")] = False,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score recorded answers; query no expert.")] = False,
    scorer: Annotated[
        str | None, typer.Option(metavar="KIND", help="A scorer with its defaults, as `consensus` or `certainty`.")
    ] = None,
) -> None:
    """Send every prompt to every expert, score the answers, and write the outcomes that `fit` reads.

    Experts are queried one after the other, so that each is loaded once. Every answer is recorded on arrival: after
    Ctrl-C or a kill, the same command resumes. A failed request is a missing outcome, never a zero. Log-probabilities
    are asked for and kept where an expert gives them: `fit` learns from them when an answer should be handed over.
    --rescore scores recorded answers with another scorer; a judge is queried only for missing verdicts.
    Exit 0: every outcome that can be scored is. Exit 4: requests failed; the same command repeats only those.
    Exit 2: no answer could be scored, or wrong input.

    Example: coe-train collect collect.yaml --prompts prompts.jsonl --out outcomes.jsonl
    """
    with mistakes_as_sentences():
        from router_training.collect.bars import TerminalBars
        from router_training.collect.progress import show_cost_factors, show_steps, show_tally
        from router_training.collect.run import Files, plan
        from router_training.collect.run import collect as run_collect
        from router_training.collect.settings import read_collect_config

        files = Files.of(prompts, out, raw)
        settings = read_collect_config(config, base_url, scorer)
        if dry_run:
            show_steps(plan(settings, files), console)
            return
        try:
            with TerminalBars(console) as bars:
                tally = run_collect(settings, files, bars, with_progress_bar, rescore=rescore)
        except KeyboardInterrupt as error:
            console.print(f"interrupted; answers so far are in {files.raw}; run the same command again to resume")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        show_tally(tally, out, files.raw, console)
        show_cost_factors(tally, settings.bases, console)
        if tally.may_grow:
            raise typer.Exit(EXIT_INCOMPLETE)
        if tally.is_hopeless:
            raise typer.Exit(EXIT_WRONG_INPUT)


def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The training config (YAML); nothing is trained.")],
) -> None:
    """Read the data of a config and show what is in it.

    Shows rows, categories, groups, each expert's coverage, near-duplicates, and warnings about what may make a router
    worse. Exit 0: the data can be trained on. Exit 2: it cannot; a sentence says why.

    Example: coe-train check train.yaml
    """
    with mistakes_as_sentences():
        from router_training.data.checks import require_trainable
        from router_training.data.dataset import read_dataset
        from router_training.data.near_duplicates import with_near_duplicates
        from router_training.data.report import check as check_dataset
        from router_training.data.report import show_report
        from router_training.data.split import split

        settings = read_config(config)
        data = settings.data
        dataset = read_dataset(data.prompts, data.outcomes, settings.expert_names, data.label)
        dataset = with_near_duplicates(dataset, with_progress_bar)
        sides = split(dataset, data.held_out_share, settings.seed, data.split_by)
        require_trainable(sides, settings)
        show_report(check_dataset(dataset, sides, settings.classifier.folds), Console())


def ask(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder, of `draft` or `fit`.")],
    prompts: Annotated[
        list[Path], typer.Option(help="Prompts, such as prompts.jsonl of `coe journal export`; several times too.")
    ],
    outcomes: Annotated[list[Path], typer.Option(help="Outcomes that are recorded already.")] = [],  # noqa: B006
    count: Annotated[int, typer.Option(min=1, max=1000, help="Prompts of each list.")] = 20,
) -> None:
    """Show the unlabelled prompts most worth labelling, then the prompts most worth collecting outcomes for.

    Worth a label: the router hesitates between two categories, or knows nothing like it. Worth outcomes: its category
    has much traffic and few outcomes.

    Example: coe-train ask router --prompts journal/prompts.jsonl
    """
    with mistakes_as_sentences():
        from router_training.ask import ask as ask_for
        from router_training.ask import show_wanted

        show_wanted(ask_for(artifact, prompts, outcomes, count), Console())
