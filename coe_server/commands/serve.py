"""`coe serve`: the server, from its configuration to its end."""

from __future__ import annotations

import gc
import logging
from typing import Annotated

import typer

from coe_server.build.experts import build_experts
from coe_server.commands.config_warnings import dangers, lifetimes, without_effect
from coe_server.commands.pull import pull_models
from coe_server.commands.terminal import ConfigPath, mistakes_as_sentences
from coe_server.config.environment import TRACING_SECRETS
from coe_server.config.schema import ServerConfig, load_config, process_environment
from coe_server.system.process import (
    allow_many_open_files,
    give_back_free_memory,
    refuse_inspection,
    share_one_arena,
    state_lock,
    write_log_to_stderr,
)


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

    Examples: coe serve serve.yaml; coe serve serve.yaml --names-only --port 8081
    """
    refuse_inspection()  # before a secret is read
    from coe_server.app import build_server  # noqa: PLC0415 - the web framework, which no other command needs
    from coe_server.http.server import taken_address  # noqa: PLC0415

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
            for warning in (*lifetimes(build_experts(settings)), *dangers(settings), *without_effect(settings)):
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
