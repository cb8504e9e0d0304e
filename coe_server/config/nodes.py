"""Settings of several machines: the nodes that a front sends requests to, and their certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from coe_server.config.addresses import HostName, WebAddress, is_loopback_host
from coe_server.config.types import ServedName, Settings

Role = Literal["server", "node"]


class NodeAccess(Settings):
    """How a front reaches nodes: their key, and which certificates to trust and to show."""

    api_key_env: str | None = None
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def paths(self) -> dict[str, Path | None]:
        """The files that it names, by key."""
        return {"ca_file": self.ca_file, "certificate": self.certificate, "key": self.key}

    def in_folder(self, absolute: Callable[[Path], Path]) -> Self:
        """The settings with absolute paths."""
        return self.model_copy(update={name: path and absolute(path) for name, path in self.paths.items()})

    @property
    def needs_tls(self) -> bool:
        """True if a file of certificates is named."""
        return any(self.paths.values())


class NodeSettings(NodeAccess):
    """One node with a fixed address."""

    name: ServedName
    address: WebAddress


class DnsNodes(NodeAccess):
    """Every address of a host name is a node, as behind a headless service of Kubernetes."""

    directory: Literal["dns"]
    host: HostName
    port: int = Field(ge=1, le=65535)
    scheme: Literal["http", "https"] = "http"
    look_seconds: float = Field(default=5.0, gt=0)


class RayNodes(NodeAccess):
    """The nodes that `coe cluster up` started on a Ray cluster."""

    directory: Literal["ray"]
    address: str = "auto"


DirectoryNodes = Annotated[DnsNodes | RayNodes, Field(discriminator="directory")]


def _none_as_empty(value: object) -> object:
    return [] if value is None else value


NodesSettings = Annotated[list[NodeSettings] | DirectoryNodes, BeforeValidator(_none_as_empty)]


def node_mistakes(nodes: list[NodeSettings] | DnsNodes | RayNodes) -> Iterator[str]:
    """Contradictory settings, as `key: sentence`."""
    entries = {f"nodes.{one.name}": one for one in nodes} if isinstance(nodes, list) else {"nodes": nodes}
    if isinstance(nodes, list) and len(entries) < len(nodes):
        yield "nodes: two of them have the same name"
    for where, one in entries.items():
        if (one.certificate is None) != (one.key is None):
            yield f"{where}.certificate: needs both certificate and key, the files of this server's own certificate"
        if isinstance(one, NodeSettings):
            parts = urlsplit(one.address)
            if parts.path not in {"", "/"} or parts.query:
                yield f"{where}.address: '{one.address}' has a path; write scheme, host and port only"
            if parts.scheme == "http" and one.needs_tls:
                yield f"{where}.ca_file: is for https, and the address is '{one.address}'; write https://"
        if isinstance(one, DnsNodes) and one.scheme == "http" and one.needs_tls:
            yield f"{where}.ca_file: is for https; set nodes.scheme: https"


def unencrypted(nodes: list[NodeSettings] | DnsNodes | RayNodes) -> Iterator[str]:
    """Warnings: keys and prompts that leave this machine in the clear."""
    if isinstance(nodes, list):
        for one in nodes:
            parts = urlsplit(one.address)
            if parts.scheme == "http" and not is_loopback_host(parts.hostname or ""):
                yield f"nodes.{one.name}.address: {one.address} is plain HTTP: {_IN_THE_CLEAR}"
    elif isinstance(nodes, DnsNodes) and nodes.scheme == "http" and not is_loopback_host(nodes.host):
        yield f"nodes.scheme: http to {nodes.host}: {_IN_THE_CLEAR}"


_IN_THE_CLEAR = "the node key and all prompts cross the network unencrypted; use https, or a network that encrypts"
