"""`coe`: the server's commands. An invalid option or configuration ends with exit code 2."""

from __future__ import annotations

import gc
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from coe_server.build.experts import build_experts
from coe_server.build.service import journal_file
from coe_server.commands import keys as key_commands
from coe_server.commands import learning as learning_commands
from coe_server.commands.bench import bench
from coe_server.commands.change import add, remove
from coe_server.commands.cluster import down, status, up
from coe_server.commands.config_warnings import dangers, lifetimes
from coe_server.commands.drain import drain, resume
from coe_server.commands.example import config as print_example
from coe_server.commands.experts import experts_table, server_of, watch_experts
from coe_server.commands.init import first_configuration, write_first_configuration
from coe_server.commands.machine import parse_machine
from coe_server.commands.pull import pull as pull_models
from coe_server.commands.route import decide_offline, print_decision
from coe_server.commands.simulate import SimulationOptions, run_simulation
from coe_server.commands.terminal import mistakes_as_sentences, table_console, tell
from coe_server.commands.validate import check, report
from coe_server.config.schema import TRACING_SECRETS, ServerConfig, load_config, process_environment
from coe_server.errors import ConfigError
from coe_server.journal.store import export
from coe_server.system.files import require_writable_file, require_writable_folder
from coe_server.system.process import (
    allow_many_open_files,
    give_back_free_memory,
    refuse_inspection,
    share_one_arena,
    state_lock,
    write_log_to_stderr,
)

app = typer.Typer(
    name="coe",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="One OpenAI-compatible endpoint for many experts: routed by a router you train, served by vLLM.",
)

app.add_typer(key_commands.app, name="keys")
app.add_typer(learning_commands.app, name="learning")
journal = typer.Typer(no_args_is_help=True, help="The decision log of a server.")
app.add_typer(journal, name="journal")
cluster = typer.Typer(no_args_is_help=True, help="Nodes: on a Ray cluster, and of a front.")
app.add_typer(cluster, name="cluster")
cluster.command()(up)
cluster.command()(status)
cluster.command()(down)
cluster.command()(drain)
cluster.command()(resume)
app.command()(bench)
app.command()(add)
app.command()(remove)
app.command("config")(print_example)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"coe {version('coe-server')}")
        raise typer.Exit


@app.callback()
def coe(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of all commands."""


ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file; `coe config --example serve` explains every key.")
]


@app.command()
def init(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER]...", help="Folders with models. Default: ./models and the usual ones of others."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write; one that is there stays as it is.")] = Path(
        "serve.yaml"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file and write nothing.")] = False,
) -> None:
    """Write a first configuration for this machine: its cards, its memory, and the models and engines that are here.

    Looks into the folders, Hugging Face's cache (HF_HUB_CACHE, HF_HOME) and Ollama's store (OLLAMA_MODELS), and on PATH
    for vllm and llama-server. Opens no connection, reads names and headers, runs nothing but `--version`. What cannot
    run here is left out, with the reason beside it.

    Examples: coe init; coe init ~/gguf --out home.yaml; coe init --dry-run
    """
    with mistakes_as_sentences():
        found = first_configuration(folders or (), os.environ)
        typer.echo(found.text if dry_run else write_first_configuration(found, out), nl=not dry_run)


@app.command()
def serve(
    config: ConfigPath,
    port: Annotated[int | None, typer.Option(help="Port to listen on instead of http.port.", min=0, max=65535)] = None,
    names_only: Annotated[
        bool, typer.Option("--names-only", help="Run without the router, to record outcomes before one is trained.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--pull", help="First download missing models, as `coe pull` does.")
    ] = False,
) -> None:
    """Start the server; it runs until Ctrl-C or SIGTERM.

    Experts to preload are started one at a time; GET /readyz answers 200 once they are loaded. All experts are stopped
    when the server ends, even if it is killed. SIGHUP reloads the artifact and the configuration.
    """
    refuse_inspection()  # before a secret is read
    from coe_server.app import build_server  # imports the web framework, which no other command needs
    from coe_server.http.server import taken_address

    share_one_arena()
    allow_many_open_files()
    environment = process_environment()

    def reread() -> ServerConfig:
        settings = load_config(config, environment)
        environment.take_out(settings.secret_variables)
        return _with_options(settings, port, names_only)

    with mistakes_as_sentences():
        settings = reread()
        write_log_to_stderr(settings.log.format)
        if download:
            pull_models(settings)
        sockets = taken_address(settings.http.host, settings.http.port)
        with state_lock(settings.state_directory):
            server = build_server(settings, reread)
            environment.take_out(TRACING_SECRETS)
            for warning in (*lifetimes(build_experts(settings)), *dangers(settings)):
                logging.getLogger(__name__).warning("%s", warning)
            gc.collect()
            gc.freeze()  # objects of the start live on; scanning them in each collection would delay requests
            give_back_free_memory()
            server.run(sockets)
    if not server.started:  # the reason has been logged
        raise typer.Exit(1)


def _with_options(settings: ServerConfig, port: int | None, names_only: bool) -> ServerConfig:
    if names_only:
        settings = settings.model_copy(update={"router": None})
    if port is not None:
        settings = settings.model_copy(update={"http": settings.http.model_copy(update={"port": port})})
    return settings


@app.command()
def pull(
    config: ConfigPath,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Experts. Default: all.")] = None,
) -> None:
    """Download the models of a configuration. Do this before a start, which downloads nothing.

    Files go to the engines' Hugging Face cache (HF_HOME, HF_HUB_CACHE); HF_TOKEN and HF_ENDPOINT apply. Complete models
    are listed and left alone; an interrupted download is resumed. Exit code 1 if a model is still missing at the end.

    Examples: coe pull serve.yaml; coe pull serve.yaml coder maths
    """
    with mistakes_as_sentences():
        pull_models(load_config(config), names or ())


@app.command()
def validate(
    config: ConfigPath,
    machine: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Plan for another machine: '[Nx]SIZE[+[Nx]SIZE...],host=SIZE'. Neither its GPU nor vLLM is needed.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write plan and mistakes to this file.")] = None,
) -> None:
    """Check a configuration without starting anything, and show the plan.

    The plan shows whether it fits, which experts are loaded together, waits, the experts that the router can choose,
    settings that can never take effect, and hints with numbers. The hub gives the size of models not downloaded.

    Exit code 0: it fits. 1: mistakes, all listed. 4: it does not fit.

    Examples: coe validate serve.yaml; coe validate serve.yaml --machine 24GiB,host=64GiB;
    coe validate serve.yaml --machine 4x80GiB,host=512GiB --json plan.json
    """
    with mistakes_as_sentences():
        if json_file is not None:
            require_writable_file("--json", json_file)
        checked = check(config, None if machine is None else parse_machine(machine))
        found = report(checked, table_console())
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    left_out = checked.plan.found.left_out if checked.plan is not None and not checked.mistakes else {}
    for mistake in (*checked.mistakes, *(f"experts.{name}: {why}" for name, why in left_out.items())):
        tell(mistake if mistake.startswith(str(config)) else f"{config}: {mistake}")
    if checked.mistakes or left_out:
        raise typer.Exit(1 if checked.mistakes else 4)


@app.command()
def route(
    config: ConfigPath,
    prompt: Annotated[str, typer.Argument(help="The prompt to route.")],
    objective: Annotated[str | None, typer.Option(help="The objective to decide under.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole decision as JSON.")] = False,
) -> None:
    """Show which expert a prompt would go to, and why. Nothing is started; no expert counts as loaded."""
    with mistakes_as_sentences():
        settings = load_config(config)
        decision = decide_offline(settings, prompt, objective)
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps(decision.as_json()), ensure_ascii=True)
    else:
        print_decision(decision)


@app.command()
def experts(
    config: ConfigPath,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh four times a second until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON of GET /admin/experts and nothing else.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port of the server. Default: http.port.", min=1)] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="COE_ADMIN_KEY", help="Admin key, if the server requires one.", show_default=False),
    ] = None,
) -> None:
    """Show where the experts of a running server are: state, bytes, users, queue and last move; and what each card
    holds, where there are several.

    A narrow terminal gets fewer columns, a file or a pipe all of them.
    """
    with mistakes_as_sentences():
        settings = load_config(config)
        server = server_of(settings, port, admin_key)
        console = table_console()
        if as_json and watch:
            raise ConfigError("--json and --watch exclude each other; give one of them")
        if as_json:
            typer.echo(json.dumps(server.experts(), indent=1))
        elif watch:
            watch_experts(server, console)
        else:
            console.print(experts_table(server.look(), console.width))


@app.command()
def simulate(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Experts, limits and timings. Default: made-up ones.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines: arrival_seconds, expert or scores, output_tokens; prompt_tokens, priority, fan_out."
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Made-up traffic: balanced, bursty, dominant, interleaved, zipf or shift.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Number of made-up experts in a profile. Default 5.", min=1)
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Number of requests in a profile. Default 300.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same profile. Default 0.")] = None,
    on_device: Annotated[
        int | None, typer.Option(help="Made-up experts that fit on a card. Default 2 of 5, 3 of 20, else 4.", min=1)
    ] = None,
    in_host: Annotated[
        int | None, typer.Option(help="Made-up experts that fit in host memory. Default all of 20, else half.", min=1)
    ] = None,
    cards: Annotated[int | None, typer.Option(help="Cards of the made-up machine. Default 1.", min=1, max=64)] = None,
    wide: Annotated[int | None, typer.Option(help="Made-up experts that take two cards. Default 0.", min=1)] = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Machines like this one behind one front, which chooses. Default none.", min=1, max=64),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Only this one: coe, fifo, lru, lfu; with --nodes coe, round-robin, least-queue, hashed. Default all."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Score given up for an expert on the device (with scores).", min=0, max=1)
    ] = 0.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    timeline: Annotated[Path | None, typer.Option(help="Draw the first policy's run to this file (SVG).")] = None,
) -> None:
    """Simulate traffic with the server's own scheduler, and compare it with other policies and the optimum.

    No engine is started; a virtual clock runs hours of traffic in seconds. Model: an engine serves up to
    max_concurrency requests at once at full speed. Serving share = W / (W + blocked); W: seconds that all answers take
    alone; blocked: seconds in which a request waits and none generates.
    """
    options = SimulationOptions(
        config, trace, profile, experts, requests, seed, on_device, in_host, cards, wide, nodes, policy, tolerance
    )
    with mistakes_as_sentences():
        run_simulation(options, json_file, timeline)


@journal.command("export")
def export_(
    config: ConfigPath,
    out: Annotated[Path, typer.Option(help="Folder for the files; those of an earlier export are replaced.")],
) -> None:
    """Export the decision log for coe-train. The server may be running.

    feedback.jsonl: every routed decision with its rating, for `coe-train map ARTIFACT --feedback`. prompts.jsonl and
    outcomes.jsonl: kept prompts (log.prompts: true) and their ratings as outcomes, for `coe-train fit`.
    """
    with mistakes_as_sentences():
        require_writable_folder("--out", out)
        found = export(journal_file(load_config(config)), out)
    Console().print(
        f"{found.feedback} decisions, {found.rated} of them rated; {found.prompts} prompts, {found.outcomes} outcomes"
        f" -> {out}",
        soft_wrap=True,
    )
