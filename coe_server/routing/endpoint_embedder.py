"""Embeddings from any OpenAI-compatible endpoint: `POST {base_url}/embeddings`, in batches, tried again on failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import numpy as np

from coe_server.connecting import user_agent
from coe_server.errors import EmbeddingUnavailable
from coe_server.retry_after import backoff_seconds, repeated, retry_after_seconds
from coe_server.routing.embedder import finite
from coe_server.routing.features import Floats, of_length_one, well_formed
from coe_server.settings.proxies import Detour, Proxy
from coe_server.settings.web_address import ApiBase, shown_address
from coe_server.verdict.payload import json_value
from coe_server.visible import visible
from coe_server.whole_answer import UNPACKED, UnusableBody, bounded_session, plain_body

MOST_AT_ONCE = 4  # requests in flight
BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # worth another try
LONGEST_PAUSE_SECONDS = 30.0
LEAST_ANSWER_BYTES, BYTES_FOR_EACH_TEXT = (
    1 << 20,
    256 << 10,
)  # ten thousand numbers of 22 digits have room in the latter


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where embeddings come from; `timeout_seconds` is for each request and the longest pause, `tries` in all."""

    base_url: str
    model: str
    api_key: str | None = None
    timeout_seconds: float = 30.0
    tries: int = 5
    batch_size: int = 64
    first_pause_seconds: float = 0.5
    proxy: Proxy | None = None


class _Busy(Exception):
    """The endpoint is busy; `pause_seconds` is what it asks to wait, if it says so."""

    def __init__(self, reason: str, pause_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


class EndpointEmbedder:
    """An `Embedder`; connections are made when they are needed and kept."""

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
        """The embeddings, or the error after which another attempt may succeed."""
        try:
            return await self._ask(texts)
        except UnusableBody as error:
            raise EmbeddingUnavailable(f"{self._url} gives {error}") from error
        except (_Busy, aiohttp.ClientError, TimeoutError) as error:
            return error
        except (ValueError, TypeError) as error:  # of aiohttp's; its words may show a secret
            raise EmbeddingUnavailable(
                f"{self._url} cannot be asked: the address, or the key for it, cannot be sent as it is"
            ) from error

    async def _ask(self, texts: Sequence[str]) -> Floats:
        if self._session is None:
            self._session = bounded_session(self._endpoint.timeout_seconds)
        endpoint = self._endpoint
        # an empty text is refused by some endpoints, and means the same as a blank one
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
                said = "it is to be asked elsewhere" if is_elsewhere else content[:200].decode("utf-8", "replace")
                raise EmbeddingUnavailable(f"{self._url} answers with status {response.status}: {visible(said)}")
        return self._rows(content, len(texts))

    def _rows(self, content: bytes, count: int) -> Floats:
        try:
            entries: list[Any] = sorted(json_value(content)["data"], key=lambda entry: entry["index"])
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
                rows = np.array([entry["embedding"] for entry in entries], dtype=np.float32)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise EmbeddingUnavailable(
                f"{self._url} does not answer as OpenAI's embeddings do: {visible(str(error)[:200])}"
            ) from error
        if rows.ndim != 2 or len(rows) != count:
            raise EmbeddingUnavailable(f"{self._url} answers {count} texts with embeddings of shape {rows.shape}")
        return rows
