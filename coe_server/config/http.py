"""Settings of the HTTP server: address, certificates, sizes and times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from coe_server.config.addresses import HostName, is_loopback_address, parse_host_name
from coe_server.config.types import ByteCount, Settings


class TlsSettings(Settings):
    """HTTPS of this server. With `client_ca` every client must show a certificate that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def in_folder(self, absolute: Callable[[Path], Path]) -> Self:
        """The settings with absolute paths."""
        files = {"certificate": self.certificate, "key": self.key, "client_ca": self.client_ca}
        return self.model_copy(update={name: path and absolute(path) for name, path in files.items()})


def _bound(host: str) -> str:
    """The canonical name or address to listen on; empty: every address."""
    return parse_host_name(host) if host else host


class HttpSettings(Settings):
    host: Annotated[str, AfterValidator(_bound)] = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)  # 0: a free port
    # further host names accepted in requests without a key
    allowed_hosts: list[HostName] = Field(default=[])
    max_body: ByteCount = 32 * 2**20
    bodies: ByteCount = 512 * 2**20
    max_upload: ByteCount = 512 * 2**20
    uploads: ByteCount = 4 * 2**30
    body_seconds: float = Field(default=60.0, gt=0)
    keepalive_seconds: float = Field(default=10.0, gt=0)
    shutdown_seconds: float = Field(default=30.0, ge=0)
    tls: TlsSettings | None = None

    @property
    def is_loopback(self) -> bool:
        return self.host.lower() == "localhost" or is_loopback_address(self.host)

    def in_folder(self, absolute: Callable[[Path], Path]) -> Self:
        """The settings with absolute paths."""
        return self if self.tls is None else self.model_copy(update={"tls": self.tls.in_folder(absolute)})


def small_room_for_bodies(http: HttpSettings) -> Iterator[str]:
    """Contradictory settings, as `key: sentence`."""
    if http.bodies < http.max_body:
        yield (
            f"http.bodies: {http.bodies:,} bytes for all bodies together are less than the limit of one "
            f"(http.max_body, {http.max_body:,})"
        )
    if http.uploads < http.max_upload:
        yield (
            f"http.uploads: {http.uploads:,} bytes for all forms on disk together are less than the limit of one "
            f"(http.max_upload, {http.max_upload:,})"
        )
