"""Builds parts of the service from settings: what a reload replaces, decision log, learner, tracing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from coe_server.build.router import build_embedder, build_shadow, build_split, steps_file
from coe_server.config.environment import check_tracing_headers
from coe_server.config.schema import ServerConfig
from coe_server.engines.preset import Members, PresetExpert
from coe_server.errors import ConfigError
from coe_server.http.apis import AUTO, model_names
from coe_server.http.bodies.presets import Preset
from coe_server.http.bodies.uploads import UploadLimits
from coe_server.http.learner import Learner
from coe_server.http.routes.quality import quality_of
from coe_server.http.serving import Comparing, Decides, Serving
from coe_server.http.tracing.trace import NoTracing, Tracing
from coe_server.http.traffic import Traffic, reference_of
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.routing.artifact import read_held_out
from coe_server.routing.artifact_checks import read_evaluation
from coe_server.routing.embeddings import Embedder, OfLength
from coe_server.routing.router import Router


def build_serving(config: ServerConfig, router: Decides, before: Serving | None = None) -> Serving:
    """The reloadable parts of the HTTP layer. The embedder of `before` is kept if its settings are the same."""
    embedder = build_embedder(config, router)
    if before is not None and _embed_alike(before.embedder, embedder):
        embedder = before.embedder
    return Serving(
        router=router,
        default_objective=config.router.objective if config.router else "",
        embedder=embedder,
        max_body_bytes=config.http.max_body,
        bodies_bytes=config.http.bodies,
        body_seconds=config.http.body_seconds,
        keepalive_seconds=config.http.keepalive_seconds,
        uploads=UploadLimits(config.http.max_upload, config.http.uploads, config.http.body_seconds),
        quality=build_quality(config, router),
        traffic=before.traffic if before and before.router is router else build_traffic(config, router),
        aliases=build_aliases(config, router),
        shadow=build_shadow(config, router),
        split=build_split(config, router),
        compare=build_comparing(config),
        routes_file=config.router.routes if config.router else None,
    )


def build_comparing(config: ServerConfig) -> Comparing | None:
    """How answers are compared; None if they are not."""
    settings = config.router
    if settings is None or not settings.compare or settings.judge is None:
        return None
    return Comparing(settings.compare, settings.judge, settings.compare_remote)


def build_aliases(config: ServerConfig, router: Decides) -> dict[str, str]:
    """Alias -> model name. Raises ConfigError for an unknown objective; `config` has checked the experts."""
    names = model_names(router.objectives, [expert.name for expert in config.experts])
    for alias, goal in config.aliases.items():
        if goal.partition(":")[0] == AUTO and goal not in names and not config.has_nodes:
            raise ConfigError(f"aliases.{alias}: unknown model '{goal}'; known: {', '.join(names)}")
    return dict(config.aliases)


def build_quality(config: ServerConfig, router: Decides) -> dict[str, Any] | None:
    """The router's evaluation, for the page; None without one."""
    if config.router is None or config.router.artifact is None or not isinstance(router, Router):
        return None
    manifest = router.artifact.manifest
    return quality_of(manifest, read_evaluation(config.router.artifact, manifest))


def build_traffic(config: ServerConfig, router: Decides) -> Traffic | None:
    """The drift watch; None without a router, or if the artifact has no statistics of held-out prompts."""
    if config.router is None or config.router.artifact is None or not isinstance(router, Router):
        return None
    held_out = read_held_out(config.router.artifact)
    reference = reference_of(held_out, router.artifact.manifest.categories)
    return None if reference is None else Traffic(reference, router.version)


def _embed_alike(one: Embedder | None, other: Embedder | None) -> bool:
    if not isinstance(one, OfLength) or not isinstance(other, OfLength):
        return False
    return (one.dimensions, one.normalisation) == (other.dimensions, other.normalisation)


def build_presets(config: ServerConfig) -> dict[str, Preset]:
    """Expert -> what it changes in a body, for those that change any."""
    presets = (expert for expert in config.experts if isinstance(expert, PresetExpert))
    return {one.name: replace(_preset(one.members), own=_of_endpoints(one)) for one in presets}


def _of_endpoints(expert: PresetExpert) -> dict[str, Preset]:
    return {endpoint: _preset(members) for endpoint, members in expert.members_by_endpoint.items()}


def _preset(members: Members) -> Preset:
    return Preset(members.set, members.force, tuple(members.remove))


SECONDS_PER_DAY = 86_400.0


def build_journal(config: ServerConfig) -> Journal | None:
    """The decision log, opened; None if no decisions are kept. Raises ConfigError if it cannot be opened."""
    if not config.log.decisions:
        return None
    keep = Retention(config.log.keep_rows, config.log.keep_days * SECONDS_PER_DAY)
    return Journal(journal_file(config), keep, keeps_prompts=config.log.prompts)


def journal_file(config: ServerConfig) -> Path:
    return config.state_directory / "journal.sqlite3"


def build_learner(config: ServerConfig, journal: Journal | None, router: Callable[[], Decides]) -> Learner | None:
    """What moves the router's scores by ratings; None if decisions are not kept. Raises ConfigError."""
    return None if journal is None else Learner(steps_file(config), journal, router)


def build_tracing(config: ServerConfig, engine_models: Mapping[str, str]) -> Tracing:
    """The tracing of requests; `engine_models` as the service has them. Raises ConfigError: see `require_tracing`."""
    if config.tracing is None:
        return NoTracing()
    require_tracing(config)
    from coe_server.http.tracing.otel import span_tracing  # noqa: PLC0415 - an extra, and half a second to import

    return span_tracing(config.tracing, engine_models)


def require_tracing(config: ServerConfig) -> None:
    """Raise ConfigError if tracing is on and its packages are not installed, or its headers are invalid."""
    if config.tracing is not None:
        check_tracing_headers()
        try:
            import_module("coe_server.http.tracing.otel")
        except ImportError as error:
            raise ConfigError(
                "tracing: needs OpenTelemetry, which comes with the extra `otel` (docs/upgrade.md)"
            ) from error
