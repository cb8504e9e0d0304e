"""A decision without a server: nothing is started, and nobody is resident."""

from __future__ import annotations

import asyncio

from coe_server.assembly.routers import build_embedder, build_router
from coe_server.config import RemoteExpert, ServerConfig
from coe_server.errors import ConfigError
from coe_server.http.options import AUTO
from coe_server.http.serving import Decides
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions, RoutingDecision
from coe_server.routing.embedder import with_embeddings


def decide_at_rest(settings: ServerConfig, prompt: str, objective: str | None) -> RoutingDecision:
    """The decision while every local expert is on disk. Raises ConfigError or ArtifactError."""
    if settings.router is None:
        raise ConfigError(f"router.artifact: is not set, so '{AUTO}' cannot choose; train one with coe-train fit")
    at_rest = {
        expert.name: Availability("remote" if isinstance(expert, RemoteExpert) else "disk", 0.0)
        for expert in settings.experts
    }
    options = RouteOptions(objective=objective or settings.router.objective)
    router = build_router(settings)
    return router.route(asyncio.run(_prepared(prompt, settings, router)), options, at_rest)


async def _prepared(prompt: str, settings: ServerConfig, router: Decides) -> Conversation:
    """The prompt with an embedding, where the router's features need one."""
    conversation = Conversation.of_prompt(prompt)
    embedder = build_embedder(settings, router)
    if embedder is None:
        return conversation
    try:
        return await with_embeddings(conversation, embedder)
    finally:
        await embedder.close()
