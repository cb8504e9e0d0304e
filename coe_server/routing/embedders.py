"""The embedder at an OpenAI-compatible endpoint (`POST {base_url}/embeddings`): batches, retried on failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import numpy as np

from coe_server.config.addresses import ApiBase, shown_address
from coe_server.config.proxies import Detour, Proxy
from coe_server.errors import EmbeddingUnavailable
from coe_server.routing.embeddings import finite
from coe_server.routing.features import Floats, of_length_one, well_formed
from coe_server.system.visible import visible
from coe_server.upstream.complaint import json_value
from coe_server.upstream.reply import (
    UNPACKED,
    UnusableBody,
    backoff_seconds,
    bounded_session,
    plain_body,
    repeated,
    retry_after_seconds,
    user_agent,
)

MOST_AT_ONCE = 4  # requests in flight
BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # retried
LONGEST_PAUSE_SECONDS = 30.0
LEAST_ANSWER_BYTES = 1 << 20
BYTES_FOR_EACH_TEXT = 256 << 10  # room for ten thousand numbers of 22 digits


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The endpoint's settings; `timeout_seconds` limits each request and each pause, `tries` counts all attempts."""

    base_url: str
    model: str
    api_key: str | None = None
    timeout_seconds: float = 30.0
    tries: int = 5
    batch_size: int = 64
    first_pause_seconds: float = 0.5
    proxy: Proxy | None = None


class _Busy(Exception):
    """The endpoint is busy; `pause_seconds`: its Retry-After, if any."""

    def __init__(self, reason: str, pause_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


class EndpointEmbedder:
    """An `Embedder`; connections are opened on first use and kept."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._address = ApiBase.of(endpoint.base_url).url("/embeddings")
        self._url = shown_address(self._address)
        self._detour = Detour.of(endpoint.proxy, endpoint.base_url)
        self._headers = {"User-Agent": user_agent(), **UNPACKED, **self._detour.headers}
        if endpoint.api_key:
            self._headers["Authorization"] = f"Bearer {endpoint.api_key}"
        self._session: aiohttp.ClientSession | None = None

    async def embed(self, texts: Sequence[str]) -> Floats:
        size = self._endpoint.batch_size
        gate = asyncio.Semaphore(MOST_AT_ONCE)

        async def one(batch: Sequence[str]) -> Floats:
            async with gate:
                return await self._repeatedly(batch)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(texts[at : at + size])) for at in range(0, len(texts), size)]
        except* EmbeddingUnavailable as failures:
            raise failures.exceptions[0] from None
        parts = [task.result() for task in tasks]
        if len({part.shape[1] for part in parts}) > 1:
            raise EmbeddingUnavailable(f"{self._url} answers with embeddings of different lengths")
        return of_length_one(finite(np.concatenate(parts), self._url))

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _repeatedly(self, texts: Sequence[str]) -> Floats:
        endpoint = self._endpoint
        longest_seconds = min(LONGEST_PAUSE_SECONDS, endpoint.timeout_seconds)

        def pause_seconds(result: Floats | Exception, attempts: int) -> float | None:
            if not isinstance(result, Exception) or attempts == endpoint.tries:
                return None
            asked = result.pause_seconds if isinstance(result, _Busy) else None
            if asked is not None:
                return min(asked, longest_seconds)
            return backoff_seconds(attempts, endpoint.first_pause_seconds, longest_seconds)

        result, _ = await repeated(lambda: self._attempt(texts), pause_seconds)
        if isinstance(result, Exception):
            reason = str(result) or type(result).__name__
            raise EmbeddingUnavailable(f"no embeddings from {self._url}: {reason}") from result
        return result

    async def _attempt(self, texts: Sequence[str]) -> Floats | Exception:
        """The embeddings, or an error after which a retry may succeed."""
        try:
            return await self._ask(texts)
        except UnusableBody as error:
            raise EmbeddingUnavailable(f"{self._url} gives {error}") from error
        except (_Busy, aiohttp.ClientError, TimeoutError) as error:
            return error
        except (ValueError, TypeError) as error:  # aiohttp's; its text may contain a secret
            raise EmbeddingUnavailable(
                f"{self._url} cannot be reached: the address or its key is invalid in HTTP"
            ) from error

    async def _ask(self, texts: Sequence[str]) -> Floats:
        if self._session is None:
            self._session = bounded_session(self._endpoint.timeout_seconds)
        endpoint = self._endpoint
        # some endpoints refuse an empty text; a blank one is equivalent
        inputs = [well_formed(text) or " " for text in texts]
        body = {"model": endpoint.model, "input": inputs, "encoding_format": "float"}
        request = self._session.post(
            self._address, json=body, headers=self._headers, allow_redirects=False, **self._detour.arguments
        )
        async with request as response:
            content = await plain_body(response, LEAST_ANSWER_BYTES + BYTES_FOR_EACH_TEXT * len(texts))
            if response.status in BUSY:
                asked = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
                raise _Busy(f"status {response.status}", asked)
            if response.status != 200:
                is_elsewhere = 300 <= response.status < 400
                said = "redirect to another address" if is_elsewhere else content[:200].decode("utf-8", "replace")
                raise EmbeddingUnavailable(f"{self._url} answers with status {response.status}: {visible(said)}")
        return self._rows(content, len(texts))

    def _rows(self, content: bytes, count: int) -> Floats:
        try:
            entries: list[Any] = sorted(json_value(content)["data"], key=lambda entry: entry["index"])
            with np.errstate(over="ignore"):  # too large numbers become infinite, which is refused
                rows = np.array([entry["embedding"] for entry in entries], dtype=np.float32)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise EmbeddingUnavailable(
                f"{self._url} does not answer in the format of OpenAI's embeddings: {visible(str(error)[:200])}"
            ) from error
        if rows.ndim != 2 or len(rows) != count:
            raise EmbeddingUnavailable(f"{self._url} answers {count} texts with embeddings of shape {rows.shape}")
        return rows
