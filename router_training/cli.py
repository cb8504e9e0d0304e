"""`coe-train`: turns recorded outcomes of your prompts on your experts into a router artifact.

Each command imports the training code it needs, so that help is fast and works without the packages of the extra
`train`. A user's mistake ends a command with one sentence and an exit code, never with a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track as rich_track

from coe_server.errors import CoeError, ConfigError, DatasetError
from coe_server.routing import artifact as artifacts
from coe_server.routing.artifact import Artifact
from coe_server.routing.probes import read_probes, run_probe
from coe_server.routing.router import Router
from coe_server.system.files import require_writable_file
from coe_server.system.interruption import EXIT_INTERRUPTED
from coe_server.system.visible import visible
from router_training.config import DEFAULT_LABEL, MOST_RESAMPLES, read_config

if TYPE_CHECKING:
    from router_training.data.embeddings import Prepare
    from router_training.fit import FitResult


Item = TypeVar("Item")

EXIT_PROBE_FAILED, EXIT_REFUSED, EXIT_INCOMPLETE = 1, 3, 4

console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Train a router from recorded outcomes, and measure any router on any outcomes.

    1. Prompts, as JSONL or Parquet: prompt_id, prompt (or messages), category, and if you have them group and weight.

    2. Outcomes, the same: prompt_id, expert, score from 0 to 1. coe-train collect makes and scores them.

    3. A config that names both files and your experts: `coe config --example train` explains every key.

    4. coe-train fit CONFIG --out artifacts/router; then point the server's router.artifact at that folder.""",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"coe-train {version('coe-server')}")
        raise typer.Exit


@app.callback()
def coe_train(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="The training config (YAML); its paths are relative to it.")],
    out: Annotated[Path, typer.Option(help="The artifact's folder. An artifact already there is replaced.")],
    force: Annotated[
        bool, typer.Option("--force", help="Serve every objective, whatever its gain; marked as forced.")
    ] = False,
) -> None:
    """Train a router and write its artifact.

    An objective is shipped if it passes two tests. Its gain on held-out prompts is certain: over the best single
    expert or, under a budget, over a random mix of experts at the same cost. And it does no harm on groups left out.
    Exit 0: shipped. Exit 3: no objective earned it, the artifact is in OUT.refused. Exit 2: wrong input.
    """
    with in_one_sentence(console):
        settings = read_config(config)  # before the import, which takes seconds: a mistake is reported at once
        from router_training.fit import fit as run_fit

        result = run_fit(settings, out, force, _with_progress_bar)
        _report(result)
        if not result.shipped:
            raise typer.Exit(EXIT_REFUSED)


@app.command()
def draft(
    routes: Annotated[
        Path, typer.Argument(help="The routes (YAML); `coe config --example routes` explains every key.")
    ],
    out: Annotated[Path, typer.Option(help="The artifact's folder. An artifact already there is replaced.")],
    show: Annotated[bool, typer.Option("--show", help="Print how each example is routed by the others.")] = False,
) -> None:
    """Make a router from a few examples of each route, without recorded outcomes.

    `coe serve` with router.routes does the same at its start. Each example is also routed by the others alone: the
    share that reaches its route says how well the examples tell the routes apart.
    """
    with in_one_sentence(console):
        from router_training.draft_routes import draft_routes, show_draft

        found = draft_routes(routes, out)
        show_draft(found, routes, Console(), every=show)
        console.print(f"artifact: {out}", markup=False)


@app.command()
def check(config: Annotated[Path, typer.Argument(help="The training config (YAML); nothing is trained.")]) -> None:
    """Read the data of a config and show what is in it.

    Shows rows, categories, groups, each expert's coverage, near-duplicates, and warnings about what may make a router
    worse. Exit 0: the data can be trained on. Exit 2: it cannot; a sentence says why.
    """
    with in_one_sentence(console):
        from router_training.data.checks import check as check_dataset
        from router_training.data.checks import require_trainable, show_report, with_near_duplicates
        from router_training.data.dataset import read_dataset, split

        settings = read_config(config)
        data = settings.data
        dataset = read_dataset(data.prompts, data.outcomes, settings.expert_names, data.label)
        dataset = with_near_duplicates(dataset, _with_progress_bar)
        sides = split(dataset, data.held_out_share, settings.seed, data.split_by)
        require_trainable(sides, settings)
        show_report(check_dataset(dataset, sides, settings.classifier.folds), Console())


@app.command()
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="The artifact's folder.")],
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
    """
    with in_one_sentence(console):
        from router_training.data.dataset import read_dataset
        from router_training.data.trained_on import prompts_trained_on
        from router_training.evaluation.evaluation import evaluate as evaluate_artifact
        from router_training.evaluation.evaluation import show_evaluation
        from router_training.evaluation.metrics import Bootstrap

        if json_file is not None:
            require_writable_file("--json", json_file)
        loaded = artifacts.load(artifact)
        prepare = _preparation(loaded, config)
        dataset = prepare(read_dataset(prompts, outcomes, loaded.expert_names, label))
        if label != DEFAULT_LABEL and not dataset.categories:
            raise DatasetError(f"--label: no prompt has a {label!r}")
        bootstrap = Bootstrap(resamples, loaded.manifest.seed)
        known = prompts_trained_on(artifact, loaded, dataset)
        evaluation = evaluate_artifact(loaded, dataset, bootstrap, _with_progress_bar, prepare)
        evaluation["n_trained_on"] = known
        show_evaluation(evaluation, Console())
        if json_file is not None:
            text = json.dumps(evaluation, indent=2, ensure_ascii=False)
            json_file.write_text(text + "\n", encoding="utf-8", errors="replace")
            console.print(f"all numbers: {json_file}", markup=False)


@app.command()
def collect(
    config: Annotated[
        Path, typer.Argument(help="Experts and scorer (YAML); `coe config --example collect` explains every key.")
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
        str | None, typer.Option(metavar="KIND", help="A scorer with its defaults, as `consensus`, instead of scorer.")
    ] = None,
) -> None:
    """Send every prompt to every expert, score the answers, and write the outcomes that `fit` reads.

    Experts are queried one after the other, so that each is loaded once. Every answer is recorded on arrival: after
    Ctrl-C or a kill, the same command resumes. A failed request is a missing outcome, never a zero. --rescore scores
    recorded answers with another scorer; a judge is queried only for missing verdicts.
    Exit 0: every outcome that can be scored is. Exit 4: requests failed; the same command repeats only those.
    Exit 2: wrong input.
    """
    with in_one_sentence(console):
        from router_training.collect.progress import TerminalBars, show_cost_factors, show_steps, show_tally
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
                tally = run_collect(settings, files, bars, _with_progress_bar, rescore=rescore)
        except KeyboardInterrupt as error:
            console.print(f"interrupted; answers so far are in {files.raw}; run the same command again to resume")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        show_tally(tally, out, files.raw, console)
        show_cost_factors(tally, settings.bases, console)
        if tally.may_grow:
            raise typer.Exit(EXIT_INCOMPLETE)


@app.command()
def prompts(
    routes: Annotated[Path, typer.Argument(help="The routes (YAML): their examples say what to write.")],
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
    """
    with in_one_sentence(console):
        from coe_server.config.routes import read_routes
        from router_training.collect.endpoint import Endpoint
        from router_training.collect.progress import TerminalBars
        from router_training.collect.settings import api_key, base_url_option, proxy_for
        from router_training.collect.synthetic import OPTIONS, show_written, write_prompts

        address = base_url_option("--base-url", base_url)
        key, proxy = api_key(api_key_env, "--api-key-env"), proxy_for(address)
        endpoint = Endpoint(address, expert, key, OPTIONS, timeout_seconds=300.0, retries=2, proxy=proxy)
        with TerminalBars(console) as bars:
            written = write_prompts(read_routes(routes), endpoint, per_category, out, bars)
        if not show_written(written, per_category, out, console):
            raise typer.Exit(EXIT_INCOMPLETE)


@app.command()
def ask(
    artifact: Annotated[Path, typer.Argument(help="The artifact's folder, of `draft` or `fit`.")],
    prompts: Annotated[
        list[Path], typer.Option(help="Prompts, such as prompts.jsonl of `coe journal export`; several times too.")
    ],
    outcomes: Annotated[list[Path], typer.Option(help="Outcomes that are recorded already.")] = [],  # noqa: B006
    count: Annotated[int, typer.Option(min=1, max=1000, help="Prompts of each list.")] = 20,
) -> None:
    """Show the unlabelled prompts most worth labelling, then the prompts most worth collecting outcomes for.

    Worth a label: the router hesitates between two categories, or knows nothing like it. Worth outcomes: its category
    has much traffic and few outcomes.
    """
    with in_one_sentence(console):
        from router_training.ask import ask as ask_for
        from router_training.ask import show_wanted

        show_wanted(ask_for(artifact, prompts, outcomes, count), Console())


@app.command("map")
def map_(
    artifact: Annotated[Path, typer.Argument(help="The artifact's folder.")],
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
    """
    with in_one_sentence(console):
        from router_training.data.embeddings import nothing_to_embed
        from router_training.remap import chosen_shares, print_table, print_worth, read_limits, read_map_options, remap

        options = read_map_options(
            budgets=budget,
            objectives=objective,
            limits=read_limits(hosted_budget, max_experts, pin, ban),
            experts=expert,
            prompts=prompts,
            outcomes=outcomes,
            feedback=feedback,
        )
        prepare = _preparation(artifacts.load(artifact), config) if options.prompts else nothing_to_embed
        solved = remap(artifact, out, options, _with_progress_bar, prepare)
        print_worth(out)
        print_table(solved, chosen_shares(out))
        console.print(f"artifact: {out}", markup=False)


@app.command()
def compare(
    log: Annotated[Path, typer.Argument(help="feedback.jsonl of `coe journal export`.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers.")] = None,
) -> None:
    """Estimate from a server's log how a shadow router would have done, and how each version that served did.

    Only disagreements are estimated, from answers of the shadow's expert that were drawn (router.exploration) or
    compared (router.compare); with fewer than 30 of them nothing is known. Sources of ratings are never mixed.
    """
    with in_one_sentence(console):
        from router_training.comparison import compare as compare_routers
        from router_training.comparison import lines_of

        if json_file is not None:
            require_writable_file("--json", json_file)
        found = compare_routers(log)
        for line in lines_of(found):
            typer.echo(visible(line))
        if json_file is not None:
            json_file.write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")


@app.command()
def report(artifact: Annotated[Path, typer.Argument(help="The artifact's folder.")]) -> None:
    """Write report.html again: one page with charts and tables on the router's gains and failures."""
    with in_one_sentence(console):
        from router_training.report.page import write_report

        console.print(f"report: {write_report(artifact)}", markup=False)


@app.command()
def probe(artifact: Annotated[Path, typer.Argument(help="The artifact's folder.")]) -> None:
    """Route the prompts of probes.yaml and compare category and experts. Exit 1: a probe fails."""
    with in_one_sentence(console):
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


def _preparation(artifact: Artifact, config: Path | None) -> Prepare:
    """How prompts get the embeddings that the artifact needs. Raises ConfigError without a training config for it."""
    from router_training.data.embeddings import nothing_to_embed, with_embeddings

    features = artifact.manifest.features
    if not features.embedded_before_routing:
        return nothing_to_embed
    if config is None:
        raise ConfigError(f"this artifact needs embeddings by {features.model!r}: name its training config (--config)")
    settings, normalisation = read_config(config).features, features.normalisation
    return partial(with_embeddings, settings=settings, track=_with_progress_bar, normalisation=normalisation)


def _with_progress_bar(items: Sequence[Item], what: str) -> Iterable[Item]:
    return rich_track(items, what, console=console, transient=True, disable=not console.is_terminal)


def _report(result: FitResult) -> None:
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
        verdict = "shipped" if reason is None else f"not shipped: {reason}"
        if (why := result.forced.get(name)) is not None:
            verdict = f"forced (--force), not earned: {why}"
        console.print(f"  {name}: {verdict}", markup=False)
    for failure in result.failing_probes:
        console.print(f"note: a {visible(failure)}", style="yellow", markup=False)
    console.print(f"artifact: {result.folder}", markup=False)
    console.print(f"report: {result.folder / REPORT}", markup=False)


# import names of the packages in the extra `train`
EXTRA = {name: name for name in ("matplotlib", "pyarrow", "regex", "scipy")} | {"sklearn": "scikit-learn"}
EXIT_WRONG_INPUT = 2


@contextmanager
def in_one_sentence(console: Console) -> Iterator[None]:
    """Run the command. A user's mistake and Ctrl-C end it with one sentence and an exit code."""
    try:
        yield
    except CoeError as error:
        console.print(visible(str(error)), style="red", markup=False)
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        console.print(
            f"{EXTRA[package]} is not installed: it comes with the extra `train` (docs/upgrade.md)",
            style="red",
            markup=False,
        )
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except BrokenPipeError:  # the reader closed the pipe: end silently
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        console.print(visible(f"{where}{error.strerror or error}"), style="red", markup=False)
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except KeyboardInterrupt as error:
        console.print("interrupted; nothing was written")
        raise typer.Exit(EXIT_INTERRUPTED) from error
