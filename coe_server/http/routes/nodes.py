"""A front's endpoints for its nodes: which there are, drain and resume; and the rows of their experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter

from coe_server.cluster import operations
from coe_server.cluster.directory import KnownNode
from coe_server.cluster.nodes import Nodes
from coe_server.cluster.snapshot import ExpertOnNode


def build_nodes(nodes: Nodes) -> APIRouter:
    """The routes under `/admin/nodes`."""
    routes = APIRouter(prefix="/admin/nodes")

    @routes.get("")
    async def every() -> list[dict[str, Any]]:
        """Each node: whether it gets requests, and if not, why; its experts and its memory."""
        return node_rows(nodes)

    @routes.post("/{name}/drain")
    async def drain(name: str) -> dict[str, Any]:
        """Send a node nothing new, also after a restart; answers in progress go on, conversations move elsewhere."""
        await operations.drain(nodes, name)
        return _one(nodes, name)

    @routes.post("/{name}/resume")
    async def resume(name: str) -> dict[str, Any]:
        """End a drain."""
        await operations.resume(nodes, name)
        return _one(nodes, name)

    return routes


def _one(nodes: Nodes, name: str) -> dict[str, Any]:
    return next(row for row in node_rows(nodes) if row["name"] == name)


def node_rows(nodes: Nodes) -> list[dict[str, Any]]:
    """Every listed node, for operators."""
    return [_row(nodes, one) for one in nodes.known()]


def _row(nodes: Nodes, node: KnownNode) -> dict[str, Any]:
    told = node.snapshot
    return {
        "name": node.name,
        "address": node.address.url,
        "usable": node.usable,
        "why": "drained" if node.drained and node.unusable is None else node.unusable,
        "drained": node.drained,
        "in_flight": nodes.sent.owed(node.name),
        "seen_seconds": node.seen_seconds and round(node.seen_seconds, 1),
        "connected_seconds": node.connected_seconds and round(node.connected_seconds, 1),
        "protocol": told and told.protocol,
        "version": told and told.version,
        "experts": sorted(told.experts) if told is not None else [],
        "cards": [
            {"used": used, "capacity": size} for used, size in zip(told.used_bytes, told.capacity_bytes, strict=False)
        ]
        if told is not None
        else [],
        "host": {"used": told.host_used_bytes, "capacity": told.host_capacity_bytes} if told is not None else None,
    }


def expert_row(nodes: Nodes, name: str) -> dict[str, Any]:
    """An expert of nodes, in the shape of a local one: as the best node has it, with sums, and a list of all nodes."""
    best = nodes.best[name]
    there = [(node, one) for node in nodes.known() if (one := node.expert(name)) is not None]
    pins = {one.pin for node, one in there if one.pin != "disk"}
    return {
        "name": name,
        "base": None,
        "state": best.tier if best.unavailable is None else "failed",
        "residency": best.tier,
        "bytes": {
            "device": sum(one.bytes_device for _, one in there),
            "host": sum(one.bytes_host for _, one in there),
        },
        "cards": [],
        "leases": sum(one.leases for _, one in there),
        "max_concurrency": sum(one.max_concurrency for _, one in there),
        "queued": sum(one.queued for _, one in there),
        "context_tokens": best.longest_tokens,
        "pin": min(pins, default=None, key=("device", "host").index),
        "last_move": None,
        "failure": best.unavailable,
        "download": None,
        "has_log": True,
        "node": operations.first(nodes, name),
        "nodes": list(_places(there)),
    }


def _places(there: list[tuple[KnownNode, ExpertOnNode]]) -> Iterator[dict[str, Any]]:
    for node, one in there:
        yield {
            "name": node.name,
            "usable": node.usable,
            "state": one.state,
            "residency": one.tier,
            "leases": one.leases,
            "queued": one.queued,
            "predicted_wait_seconds": one.wait_seconds,
            "pin": None if one.pin == "disk" else one.pin,
            "failure": one.failure,
        }
