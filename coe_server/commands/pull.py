"""`coe pull`: downloads the models of a configuration; complete models are listed and left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from coe_server.build.experts import surroundings_of
from coe_server.commands.terminal import ConfigPath, mistakes_as_sentences
from coe_server.config.schema import ServerConfig, load_config
from coe_server.engines.hub import HubSource, download, gib, here_already, missing, require_room
from coe_server.engines.lora import LoraExpert
from coe_server.engines.user import EngineUser
from coe_server.engines.vllm.command import hub_source
from coe_server.engines.vllm.settings import VllmExpert
from coe_server.errors import CoeError, ConfigError, DownloadFailed


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


def pull_models(config: ServerConfig, names: Sequence[str] = ()) -> None:
    """Download missing models of these experts (default: all). A failed download does not stop the others.

    Raises ConfigError for an unknown name, and DownloadFailed at the end if a model is still missing.
    """
    sources = _sources(config, names)
    if not sources:
        typer.echo("No expert has a model to download.")
    user = EngineUser.called(config.vllm.user) if config.vllm.user else None
    failed = _pull_all(sources) if user is None else _as(user, sources)
    if failed:
        raise DownloadFailed(f"{failed} of {len(sources)} models are still missing; run `coe pull` again")


def _sources(config: ServerConfig, names: Sequence[str]) -> dict[str, HubSource]:
    """Expert -> its model; a model of several experts is listed once."""
    known = {expert.name: expert for expert in config.experts}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"there is no expert '{unknown[0]}'; the experts are {', '.join(known)}")
    wanted = [known[name] for name in names] or config.experts
    surroundings = surroundings_of(config)
    sources = {one.name: hub_source(one.launch(surroundings)) for one in wanted if isinstance(one, VllmExpert)}
    for one in wanted:
        if isinstance(one, LoraExpert) and isinstance(base := known[one.of], VllmExpert):
            sources[one.name] = HubSource(one.adapter, hub_source(base.launch(surroundings)).environment)
    first = {(source.model, source.revision): name for name, source in reversed(sources.items())}
    return {name: source for name, source in sources.items() if name in first.values()}


def _pull_all(sources: dict[str, HubSource]) -> int:
    """Download all; returns the number of failures, each reported on standard error."""
    failed = 0
    for name, source in sources.items():
        try:
            for sentence in _pull_one(source):
                typer.echo(f"{name}: {source.model} {sentence}")
        except CoeError as error:
            failed += 1
            typer.echo(f"coe: {name}: {error}", err=True)
    return failed


def _pull_one(source: HubSource) -> Iterator[str]:
    here = here_already(source)
    if here is not None and source.model == str(here[0]):
        yield f"is a local folder, {gib(here[1])} of weights"
        return
    try:
        needed = missing(source)
    except ConfigError as error:
        if here is None:
            raise
        yield f"is already here, {gib(here[1])} of weights in {here[0]} (not compared with the hub: {error})"
        return
    if needed.size_bytes == 0 and here is not None:
        yield f"is already here, {gib(here[1])} of weights in {here[0]}"
        return
    require_room(needed)
    yield f"downloading {gib(needed.size_bytes)} into {needed.cache}"
    yield f"downloaded into {download(needed)}"


def _as(user: EngineUser, sources: dict[str, HubSource]) -> int:
    """Download in a process of the engines' user, who owns the cache: root must not follow links in it."""
    import huggingface_hub  # noqa: F401, PLC0415  reads the environment, so before the user changes

    child = os.fork()
    if child == 0:
        failed = len(sources)
        try:
            os.initgroups(user.name, user.gid)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.environ.update(user.environment)
            failed = _pull_all(sources)
        finally:
            os._exit(min(failed, 100))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
