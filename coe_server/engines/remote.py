"""An expert on another server with an OpenAI-compatible API. It uses no memory here, so it is always loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from coe_server.config.addresses import ApiBase, BaseUrl
from coe_server.config.proxies import Proxy
from coe_server.config.types import RequestHeaders, filled_in
from coe_server.engines.engine import Engine, EngineRequest, EngineResponse, WithoutProcess
from coe_server.engines.http_channel import ELSEWHERE, HttpChannel
from coe_server.engines.settings import ExpertSettings, Surroundings
from coe_server.upstream.reply import user_agent

_OUR_PREFIX = "/v1"  # `base_url` includes it, as in OpenAI's clients
# The client's other headers are not forwarded, above all its key for this server.
PASSED_ON = frozenset(("content-type", "accept", "anthropic-version", "anthropic-beta"))
# Without this header any coding is acceptable (RFC 9110, 12.5.3). Answers must be read here for events and usage.
UNCOMPRESSED = ("Accept-Encoding", "identity")
_NO_HEADERS: Mapping[str, str] = {}


class RemoteExpert(ExpertSettings):
    remote = True

    engine: Literal["remote"]
    base_url: BaseUrl
    model: str
    api_key_env: str | None = None
    headers: RequestHeaders = Field(default={})

    def build(self, surroundings: Surroundings) -> Engine:
        """Build the engine with the secrets and the proxy of the present environment."""
        key, variable, secret = f"experts.{self.name}", self.api_key_env, surroundings.environment.secret
        return RemoteEngine(
            self.name,
            self.base_url,
            secret(f"{key}.api_key_env", variable) if variable else None,
            filled_in(self.headers, lambda header, name: secret(f"{key}.headers.{header}", name)),
            surroundings.proxy_for(self.base_url),
        )

    @property
    def model_name(self) -> str:
        return self.model

    def without_effect(self) -> Iterator[str]:
        """As in the base class, and an address that is probably not whole."""
        for key, tier in (("pin", self.pin), ("preload", self.preload)):
            if tier is not None:
                yield f"{key}: '{tier}' never applies; the expert is remote and uses no memory here"
        if self.api_key_env is not None and any(name.lower() == "authorization" for name in self.headers):
            yield "api_key_env: is never sent; the Authorization in headers replaces it"
        if not urlsplit(self.base_url).path.strip("/"):
            yield f"base_url: '{self.base_url}' has no path; most servers have OpenAI's API at {_OUR_PREFIX}"


class RemoteEngine(WithoutProcess):
    """An `Engine` (see `engine.py`) that sends each request to the other server.

    `headers` are sent with every request and replace headers of the same names.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None,
        headers: Mapping[str, str] = _NO_HEADERS,
        proxy: Proxy | None = None,
    ) -> None:
        self._name = name
        self._base = ApiBase.of(base_url)
        self._has_our_prefix = self._base.root.endswith(_OUR_PREFIX)  # then `/tokenize` etc. are outside `/v1`
        self._proxy = proxy
        configured = frozenset(name.lower() for name in headers)
        self._passed_on = PASSED_ON - configured
        ours = [UNCOMPRESSED, ("User-Agent", user_agent())]
        if api_key:
            ours.append(("Authorization", f"Bearer {api_key}"))
        self._added = (*(pair for pair in ours if pair[0].lower() not in configured), *headers.items())
        self._http: HttpChannel | None = None

    async def stop(self, at_once: bool = False) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    def send(self, request: EngineRequest) -> AbstractAsyncContextManager[EngineResponse]:
        if self._http is None:
            root = self._base.root.removesuffix(_OUR_PREFIX)
            self._http = HttpChannel(self._name, root, reuse=ELSEWHERE, proxy=self._proxy)
        passed_on = tuple(pair for pair in request.headers if pair[0].lower() in self._passed_on)
        path = request.path if self._has_our_prefix else request.path.removeprefix(_OUR_PREFIX)
        return self._http.send(
            EngineRequest(request.method, self._base.with_query(path), passed_on + self._added, request.body)
        )
