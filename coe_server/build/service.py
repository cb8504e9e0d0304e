"""Builds parts of the service from settings: router, embedder, drift watch, decision log, keys, tracing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from coe_server.build.drafts import drafted, embedded_by
from coe_server.config.addresses import canonical_host
from coe_server.config.environment import Environment
from coe_server.config.schema import (
    EmbeddingSettings,
    HandoverRule,
    RouterSettings,
    ServerConfig,
    check_tracing_headers,
    proxies_of_environment,
)
from coe_server.engines.preset import Members, PresetExpert
from coe_server.engines.settings import ExpertSettings
from coe_server.errors import ConfigError
from coe_server.http.apis import AUTO, model_names
from coe_server.http.auth import Guard
from coe_server.http.bodies.presets import Preset
from coe_server.http.bodies.uploads import UploadLimits
from coe_server.http.browsers import Hosts
from coe_server.http.learner import Learner, with_table
from coe_server.http.routes.quality import quality_of
from coe_server.http.serving import Comparing, Decides, Serving, Traffic, reference_of
from coe_server.http.tracing.trace import NoTracing, Tracing
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.journal.steps import read_steps
from coe_server.keys import Key, Keyring, hashed, read_keys
from coe_server.routing.artifact import Artifact, read_held_out
from coe_server.routing.artifact import load as load_artifact
from coe_server.routing.artifact_checks import read_evaluation
from coe_server.routing.by_name import NamedRouter
from coe_server.routing.capabilities import Capabilities, known_modalities
from coe_server.routing.certainty import WHOLE
from coe_server.routing.embedders import Endpoint, EndpointEmbedder
from coe_server.routing.embeddings import Embedder, OfLength
from coe_server.routing.handover import HandoverTerms
from coe_server.routing.local_embedders import local_embedder
from coe_server.routing.probes import failing
from coe_server.routing.router import Router

logger = logging.getLogger(__name__)


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


def build_shadow(config: ServerConfig, router: Decides) -> Decides | None:
    """The router that decides beside the serving one; None without one."""
    path = config.router.shadow if config.router else None
    return None if path is None else _other_router(config, path, router, "router.shadow")


def build_split(config: ServerConfig, router: Decides) -> list[tuple[Decides, float]]:
    """The routers that serve a share of the conversations."""
    shares = config.router.split if config.router else {}
    return [(_other_router(config, path, router, "router.split"), share) for path, share in shares.items()]


def _other_router(config: ServerConfig, path: Path, router: Decides, key: str) -> Router:
    """Another artifact's router. Raises ConfigError if it needs other embeddings or lacks the default objective."""
    assert config.router is not None, "another router stands beside a configured one"
    settings = config.router
    other = Router.load(
        path, settings.residency_tolerance, build_capabilities(config), settings.budget_window, build_handover(settings)
    )
    if settings.objective not in other.objectives:
        raise ConfigError(
            f"{key}: {path} has no objective '{settings.objective}'; it has {', '.join(other.objectives)}"
        )
    features = other.artifact.manifest.features
    same = isinstance(router, Router) and router.artifact.manifest.features == features
    if features.embedded_before_routing and not same:
        raise ConfigError(f"{key}: {path} needs embeddings by {features.model!r}, which the router does not compute")
    return other


def build_handover(settings: RouterSettings) -> HandoverTerms | None:
    """When answers are handed over; None if they are not."""
    given = settings.handover
    if given is None:
        return None
    return replace(_terms(given), objectives={name: _terms(given.under(name)) for name in given.objectives})


def _terms(rule: HandoverRule | None) -> HandoverTerms:
    if rule is None:
        return HandoverTerms(at_most=0)
    tokens = WHOLE if rule.tokens == "all" else rule.tokens
    return HandoverTerms(tokens, rule.at_most, rule.margin, rule.score_per_second)


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


def build_router(config: ServerConfig) -> Decides:
    """The router of the configured artifact, checked against the experts; without one, experts are chosen by name."""
    names = [expert.name for expert in config.experts]
    if config.router is None:
        return NamedRouter(names, build_capabilities(config))
    settings = config.router
    artifact = _artifact(config, settings, names)
    router = Router(
        artifact,
        settings.residency_tolerance,
        build_capabilities(config),
        settings.budget_window,
        settings.exploration,
        build_handover(settings),
    )
    router.learned = with_table(router.learned, read_steps(steps_file(config)))
    for name in () if config.has_nodes else router.artifact.unserved(names):
        logger.warning("router.artifact: its expert '%s' is not configured; the next best answers", name)
    if config.router.objective not in router.objectives:
        raise ConfigError(f"router.objective: '{config.router.objective}' is not one of {', '.join(router.objectives)}")
    unknown = set(settings.handover.objectives if settings.handover else ()) - set(router.objectives)
    if unknown:
        raise ConfigError(f"router.handover.objectives: '{min(unknown)}' is not one of {', '.join(router.objectives)}")
    if refusal := router.judges.refusal(config.router.objective):
        logger.warning("router.handover: nothing is handed over under '%s': %s", config.router.objective, refusal)
    _try_probes(router, config.router)
    return router


def _artifact(config: ServerConfig, settings: RouterSettings, experts: Sequence[str]) -> Artifact:
    """The configured artifact, or one fitted to the configured routes."""
    if settings.artifact is not None:
        return load_artifact(settings.artifact)
    assert settings.routes is not None, "a router has an artifact or routes"
    by = settings.embeddings
    embedder = _embedder(by, config.environment) if by is not None else None
    return drafted(
        settings.routes,
        None if config.has_nodes else experts,
        embedder,
        embedded_by(by.model, by.base_url) if by else None,
    )


def build_presets(config: ServerConfig) -> dict[str, Preset]:
    """Expert -> what it changes in a body, for those that change any."""
    presets = (expert for expert in config.experts if isinstance(expert, PresetExpert))
    return {one.name: replace(_preset(one.members), own=_of_endpoints(one)) for one in presets}


def _of_endpoints(expert: PresetExpert) -> dict[str, Preset]:
    return {endpoint: _preset(members) for endpoint, members in expert.members_by_endpoint.items()}


def _preset(members: Members) -> Preset:
    return Preset(members.set, members.force, tuple(members.remove))


def build_capabilities(config: ServerConfig) -> dict[str, Capabilities]:
    """Each expert's capabilities as the configuration states or implies them; the artifact adds the rest.

    A preset has its base's, except for those it states itself.
    """
    own = {expert.name: _capabilities(expert) for expert in config.experts}
    bases = {name: own[base] for name, base in config.bases.items() if base in own}
    return {name: said.over(bases[name]) if name in bases else said for name, said in own.items()}


def _capabilities(expert: ExpertSettings) -> Capabilities:
    endpoints = expert.served_endpoints
    return Capabilities(
        context_tokens=expert.longest_context_tokens,
        modalities=known_modalities(expert.vision, expert.modalities),
        tools=expert.tools,
        endpoints=frozenset(endpoints) if endpoints is not None else None,
    )


def _try_probes(router: Router, settings: RouterSettings) -> None:
    """Run the artifact's probes. A failure raises ConfigError or logs a warning, as `failing_probes` says."""
    for failure in failing(router, settings.artifact) if settings.artifact is not None else ():
        if settings.failing_probes == "refuse":
            raise ConfigError(f"router.artifact: a {failure} (router.failing_probes: refuse)")
        logger.warning("router.artifact: a %s", failure)


def build_embedder(config: ServerConfig, router: Decides) -> Embedder | None:
    """The embedder that this router needs; None if its features need none. Raises ConfigError if it is not configured.

    Its settings come from the server's configuration only: an artifact cannot make the server call an address or load
    a model.
    """
    needed = router.artifact.manifest.features if isinstance(router, Router) else None
    if config.router is None or needed is None or not needed.embedded_before_routing:
        return None
    settings = config.router.embeddings
    if settings is None:
        raise ConfigError(f"router.embeddings: is missing; this artifact needs embeddings by {needed.model!r}")
    if settings.base_url is not None and settings.model != needed.model:
        raise ConfigError(f"router.embeddings.model: {settings.model!r} is not the artifact's model, {needed.model!r}")
    return OfLength(_embedder(settings, config.environment), needed.dimensions, needed.normalisation)


def _embedder(settings: EmbeddingSettings, environment: Environment) -> Embedder:
    if settings.base_url is None:
        return local_embedder(settings.model)
    key = environment.secret("router.embeddings.api_key_env", name) if (name := settings.api_key_env) else None
    return EndpointEmbedder(
        Endpoint(
            settings.base_url,
            settings.model,
            key,
            settings.timeout_seconds,
            tries=2,
            first_pause_seconds=0.1,
            proxy=proxies_of_environment().for_address(settings.base_url),
        )
    )


SECONDS_PER_DAY = 86_400.0


def build_journal(config: ServerConfig) -> Journal | None:
    """The decision log, opened; None if no decisions are kept. Raises ConfigError if it cannot be opened."""
    if not config.log.decisions:
        return None
    keep = Retention(config.log.keep_rows, config.log.keep_days * SECONDS_PER_DAY)
    journal = Journal(journal_file(config), keep, keeps_prompts=config.log.prompts)
    journal.start()
    return journal


def build_learner(config: ServerConfig, journal: Journal | None, router: Callable[[], Decides]) -> Learner | None:
    """What moves the router's scores by ratings; None if decisions are not kept. Raises ConfigError."""
    return None if journal is None else Learner(steps_file(config), journal, router)


def steps_file(config: ServerConfig) -> Path:
    return config.state_directory / "learned.json"


def journal_file(config: ServerConfig) -> Path:
    return config.state_directory / "journal.sqlite3"


_ADMIN, _SCRAPE, _NODE = "admin_key_env", "scrape_key_env", "node_key_env"


def build_guard(config: ServerConfig) -> Guard:
    """The guard of all requests. Raises ConfigError if keys are invalid, or missing on a non-loopback address."""
    settings = config.keys
    keys = read_keys(settings.file) if settings.file is not None else ()
    keys += tuple(_keys_of_environment(config, {key.name for key in keys}))
    if not config.has_nodes:  # a front learns names from its nodes
        _refuse_unknown_names(keys, {expert.name for expert in config.experts})
    if not keys and not config.http.is_loopback:
        if not config.keys.open:
            raise ConfigError(
                f"http.host: '{config.http.host}' can be reached from other machines and there are no keys; create one "
                "(keys.file, `coe keys add`), or set keys.open: true"
            )
        logger.warning("no keys (keys.open): every client that reaches %s may use every expert", config.http.host)
    return Guard(Keyring(keys), config.http.is_loopback, _hosts(config))


def _hosts(config: ServerConfig) -> Hosts:
    bound = canonical_host(config.http.host)
    return Hosts(frozenset((bound, *config.http.allowed_hosts)), any_for_clients=config.keys.open)


def _keys_of_environment(config: ServerConfig, taken: Collection[str]) -> Iterator[Key]:
    """The keys set by environment variables. Each has the name of its setting, which the decision log records."""
    settings = config.keys
    for name, variable in (
        ("api_key_env", settings.api_key_env),
        (_ADMIN, settings.admin_key_env),
        (_SCRAPE, settings.scrape_key_env),
        (_NODE, settings.node_key_env),
    ):
        if variable is None:
            continue
        if name in taken:
            raise ConfigError(f"keys.{name}: keys.file has a key with the name '{name}'; rename that key")
        digest = hashed(config.environment.secret(f"keys.{name}", variable))
        is_admin, is_scrape, is_node = (name == kind for kind in (_ADMIN, _SCRAPE, _NODE))
        yield Key(name=name, sha256=digest, admin=is_admin, scrape=is_scrape, node=is_node, priority=not is_scrape)


def _refuse_unknown_names(keys: Iterable[Key], experts: Collection[str]) -> None:
    for key in keys:
        if unknown := sorted((key.experts or frozenset()) - set(experts)):
            raise ConfigError(
                f"keys.file: key '{key.name}' may use expert '{unknown[0]}'; the experts are {', '.join(experts)}"
            )


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
