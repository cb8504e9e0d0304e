"""Builds the router and what it needs: artifact, capabilities, embedder, handover; and the routers beside it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coe_server.build.drafts import drafted, embedded_by
from coe_server.config.environment import Environment
from coe_server.config.router import EmbeddingSettings, HandoverRule, RouterSettings
from coe_server.config.schema import ServerConfig, proxies_of_environment
from coe_server.engines.settings import ExpertSettings
from coe_server.errors import ConfigError
from coe_server.http.learner import with_table
from coe_server.http.serving import Decides
from coe_server.journal.steps import read_steps
from coe_server.routing.artifact import Artifact
from coe_server.routing.artifact import load as load_artifact
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


def _try_probes(router: Router, settings: RouterSettings) -> None:
    """Run the artifact's probes. A failure raises ConfigError or logs a warning, as `failing_probes` says."""
    for failure in failing(router, settings.artifact) if settings.artifact is not None else ():
        if settings.failing_probes == "refuse":
            raise ConfigError(f"router.artifact: a {failure} (router.failing_probes: refuse)")
        logger.warning("router.artifact: a %s", failure)


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


def steps_file(config: ServerConfig) -> Path:
    return config.state_directory / "learned.json"
