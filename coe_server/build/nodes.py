"""Builds what a front has of its nodes: the directory, keys and certificates, and how their experts become known."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from coe_server.cache.slot import Expert
from coe_server.cluster.connections import Access
from coe_server.cluster.directory import DnsDirectory, NodeAddress, NodeDirectory, StaticDirectory
from coe_server.cluster.drained import Drained
from coe_server.cluster.engine import OnNodes
from coe_server.cluster.nodes import Nodes
from coe_server.cluster.ray_directory import RayDirectory, ray_reader
from coe_server.config.nodes import DnsNodes, NodeAccess, RayNodes
from coe_server.config.schema import ServerConfig
from coe_server.errors import ConfigError
from coe_server.http.serving import NodeIdentity, Service

logger = logging.getLogger(__name__)

_ENDLESS = 1_000_000  # leases at a time: nodes queue, the front does not


def _dns(settings: DnsNodes) -> NodeDirectory:
    return DnsDirectory(settings.host, settings.port, settings.scheme, settings.look_seconds)


def _ray(settings: RayNodes) -> NodeDirectory:
    return RayDirectory(ray_reader(settings.address))


# `nodes.directory` -> how it is built
_DIRECTORIES: Mapping[str, Callable[[Any], NodeDirectory]] = {"dns": _dns, "ray": _ray}


def build_nodes(config: ServerConfig) -> Nodes | None:
    """The nodes of a front, not yet connected; None for any other server. Raises ConfigError."""
    if not config.has_nodes:
        return None
    settings, drained = config.nodes, Drained(config.state_directory / "drained.json")
    if not isinstance(settings, list):
        access = _access(config, settings, "nodes")
        return Nodes(_DIRECTORIES[settings.directory](settings), lambda _: access, drained)
    addresses = [NodeAddress(one.name, one.address.rstrip("/")) for one in settings]
    by_name = {one.name: _access(config, one, f"nodes.{one.name}") for one in settings}
    return Nodes(StaticDirectory(addresses), lambda address: by_name[address.name], drained)


def _access(config: ServerConfig, settings: NodeAccess, where: str) -> Access:
    variable = settings.api_key_env
    key = config.environment.secret(f"{where}.api_key_env", variable) if variable else None
    return Access(key, _tls(settings, where) if settings.needs_tls else None)


def _tls(settings: NodeAccess, where: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{where}.ca_file: {settings.ca_file} cannot be read as certificates: {error}") from error
    if settings.certificate is not None:
        try:
            context.load_cert_chain(settings.certificate, settings.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{where}.certificate: {settings.certificate} cannot be used: {error}") from error
    return context


def build_identity(config: ServerConfig) -> NodeIdentity | None:
    """What a node calls itself; None for any other server."""
    if config.role != "node":
        return None
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].lstrip("._-")
    return NodeIdentity(name or "node", os.urandom(8).hex())


def learn_from(nodes: Nodes, service: Service, models: dict[str, str]) -> None:
    """Let experts of nodes become experts of this front, and go with the last node that has them. `models`: that of the
    service, by expert."""
    known = _ExpertsOfNodes(nodes, service, models)
    nodes.experts.learn, nodes.experts.unlearn, nodes.changed = known.learn, known.unlearn, known.tell_missing


class _ExpertsOfNodes:
    def __init__(self, nodes: Nodes, service: Service, models: dict[str, str]) -> None:
        self._nodes = nodes
        self._service = service
        self._models = models
        self._told: set[str] = set()  # experts that are missing, and of which that was said

    def learn(self, name: str) -> None:
        if name in self._models and name not in self._service.leaving:
            logger.warning("expert '%s' of a node has the name of an expert of this front, which answers", name)
            return
        engine = OnNodes(name, self._nodes)
        self._service.cache.roster.add(Expert(name, engine, remote=True, on_nodes=True, max_concurrency=_ENDLESS))
        self._models[name] = name
        self._service.leaving.discard(name)
        self._told.discard(name)

    def unlearn(self, name: str) -> None:
        if self._service.is_on_nodes(name):
            logger.info("no node has expert '%s' any more", name)
            self._service.leaving.add(name)
            self._service.cache.roster.remove(name)

    def tell_missing(self) -> None:
        """Say which experts of the router no node has, once every node has answered or failed to."""
        if not self._nodes.settled:
            return
        for name in self._service.trained:
            if name not in self._models and name not in self._told:
                self._told.add(name)
                logger.warning("router.artifact: no node has its expert '%s'; the next best answers", name)
