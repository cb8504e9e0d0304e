"""What an operator asks a front's nodes for: drain and resume, moves of an expert, and the end of its log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from coe_server.cluster.choice import choose
from coe_server.cluster.connections import error_of
from coe_server.cluster.link import NodeLink
from coe_server.cluster.nodes import Nodes
from coe_server.engines.engine import EngineRequest
from coe_server.errors import EngineError, EngineRefused, RequestError, UnknownModel
from coe_server.upstream.complaint import json_value

logger = logging.getLogger(__name__)

_MOVE_SECONDS = 900.0  # a load from disk, behind the turns of others
_LOG_SECONDS = 10.0
_LONGEST_ANSWER_BYTES = 512 << 10  # the end of a log, as JSON


async def drain(nodes: Nodes, node: str) -> None:
    """Send a node nothing new from now on, until `resume`; also after a restart of this front. Raises RequestError."""
    nodes.link(node).drained = True
    nodes.drained.add(node)
    logger.info("node '%s' is drained: it gets nothing new", node)
    await _told_and_kept(nodes)


async def resume(nodes: Nodes, node: str) -> None:
    """End a drain. Raises RequestError if the node is not there."""
    nodes.link(node).drained = False
    nodes.drained.discard(node)
    logger.info("node '%s' is used again", node)
    await _told_and_kept(nodes)


async def _told_and_kept(nodes: Nodes) -> None:
    nodes.heard()
    await nodes.drained.keep()


async def move(nodes: Nodes, expert: str, action: str, node: str | None) -> str:
    """Ask a node to `load`, `unload`, `restart` or `pin?tier=...` an expert; without a name the best one. Returns
    its name."""
    link = _link_with(nodes, expert, node)
    await _ask(link, "POST", f"/node/experts/{expert}/{action}", _MOVE_SECONDS)
    return link.name


async def log(nodes: Nodes, expert: str, lines: int, node: str | None) -> dict[str, Any]:
    """The end of an expert's log as its node tells it. Raises EngineError if that is no JSON object."""
    link = _link_with(nodes, expert, node)
    told = await _ask(link, "GET", f"/node/experts/{expert}/log?lines={lines}", _LOG_SECONDS)
    try:
        found = json_value(told)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EngineError(f"node '{link.name}' gave no log")
    return found


def first(nodes: Nodes, expert: str) -> str | None:
    """The node that would get the next request for an expert; None if none would."""
    return next(iter(choose(expert, nodes.usable(), nodes.sent)), None)


def _link_with(nodes: Nodes, expert: str, node: str | None) -> NodeLink:
    """The node of that name, or the best one that has the expert. Raises UnknownModel or RequestError."""
    if node is None:
        node = first(nodes, expert) or next((one.name for one in nodes.known() if one.expert(expert) is not None), None)
        if node is None:
            raise UnknownModel(f"no node has expert '{expert}' now", "model")
    link = nodes.link(node)
    if link.liveness.expert(expert) is None:
        raise RequestError(f"node '{node}' does not have expert '{expert}'", "node")
    return link


async def _ask(link: NodeLink, method: str, path: str, within_seconds: float) -> bytes:
    """The body of a node's answer.

    Raises EngineRefused with the node's status and sentence, or EngineError without any.
    """
    request = EngineRequest(method, path, link.connections.access.headers, b"")
    try:
        async with asyncio.timeout(within_seconds), link.connections.channel.send(request) as answer:
            body = bytearray()
            async for chunk in answer.chunks():
                body += chunk[: _LONGEST_ANSWER_BYTES - len(body)]
    except TimeoutError as error:
        raise EngineError(f"node '{link.name}' did not answer within {within_seconds:g} s") from error
    if answer.status != 200:
        raise EngineRefused(f"node '{link.name}'", answer.status, error_of(bytes(body)).message)
    return bytes(body)
