"""Typed settings of the server. The only reader of configuration files and of the environment."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from coe_server.config.addresses import BaseUrl, HostName, WebAddress, is_loopback_address
from coe_server.config.environment import Environment, secret_variables
from coe_server.config.file import first_mistake, read_settings_file
from coe_server.config.proxies import Proxies
from coe_server.config.types import (
    Alias,
    Amount,
    ByteCount,
    Modality,
    RequestHeaders,
    ServedName,
    clean_secret,
    contradiction,
)
from coe_server.errors import ConfigError

TierName = Literal["device", "host", "disk"]
EndpointName = Literal["chat", "completions", "responses", "messages", "embeddings", "tokenize", "rerank", "score"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class HttpSettings(_Settings):
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)  # 0: any free port
    allowed_hosts: list[HostName] = []  # names beside this machine's own by which it may be asked without a key
    max_body: ByteCount = 32 * 2**20
    bodies: ByteCount = 512 * 2**20
    body_seconds: float = Field(default=60.0, gt=0)
    keepalive_seconds: float = Field(default=10.0, gt=0)
    shutdown_seconds: float = Field(default=30.0, ge=0)

    @property
    def is_loopback(self) -> bool:
        return self.host.lower() == "localhost" or is_loopback_address(self.host)


class LogSettings(_Settings):
    """The log of lines, and the decision log in `state_directory`."""

    format: Literal["auto", "json", "text"] = "auto"
    prompts: bool = False  # prompts are kept only where the operator says so
    decisions: bool = True
    keep_rows: int = Field(default=100_000, ge=1)
    keep_days: float = Field(default=30.0, gt=0)


class TracingSettings(_Settings):
    """OpenTelemetry traces of requests. What is None here the SDK takes from its own variables (OTEL_...)."""

    endpoint: WebAddress | None = None
    service_name: str | None = None
    sample_ratio: float | None = Field(default=None, ge=0.0, le=1.0)


class KeySettings(_Settings):
    """The keys that are accepted. Without any key every client that reaches the server is."""

    file: Path | None = None
    api_key_env: str | None = None
    admin_key_env: str | None = None
    scrape_key_env: str | None = None
    open: bool = False  # serve beyond this machine without keys


class EmbeddingSettings(_Settings):
    """What embeds prompts before they are routed: an endpoint, or without `base_url` a model in this process."""

    model: str
    base_url: BaseUrl | None = None
    api_key_env: str | None = None
    timeout_seconds: float = Field(default=5.0, gt=0)


class RouterSettings(_Settings):
    artifact: Path
    objective: str = "quality"
    residency_tolerance: float = Field(default=0.0, ge=0.0, le=1.0)
    budget_window: int = Field(default=1000, ge=0, le=10_000)
    failing_probes: Literal["warn", "refuse"] = "warn"
    embeddings: EmbeddingSettings | None = None


class MemorySettings(_Settings):
    device: Amount = None
    host: Amount = None


class SchedulingSettings(_Settings):
    max_wait_seconds: float = Field(default=30.0, gt=0)
    queue_limit: int = Field(default=64, ge=1)
    queue_limit_total: int = Field(default=1024, ge=1)
    max_concurrency: int = Field(default=16, ge=1)
    max_fan_out: int = Field(default=128, ge=1)
    max_generation_seconds: float = Field(default=120.0, gt=0)
    min_tenure_seconds: float = Field(default=0.0, ge=0)
    prefetch: bool = True


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class VllmSettings(_Settings):
    command: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] = ["vllm"]
    platform: Literal["auto", "cpu", "cuda"] = "auto"
    start_timeout_seconds: float = Field(default=600.0, gt=0)
    kv_cache: ByteCount = 4 * 2**30
    process_memory: ByteCount = 1280 * 2**20  # host memory of one engine process, until it is measured
    log_directory: Path | None = None  # logs in state_directory, which is one server's alone
    allowed_media_domains: list[HostName] = []
    user: str | None = None  # the server's own


class _ExpertSettings(_Settings):
    name: ServedName
    pin: TierName | None = None
    preload: TierName | None = None
    ttl_seconds: float | None = Field(default=None, gt=0)
    context_tokens: int | None = Field(default=None, gt=0)
    vision: bool | None = None
    modalities: list[Modality] | None = None
    tools: bool | None = None
    endpoints: list[EndpointName] | None = Field(default=None, min_length=1)


class VllmExpert(_ExpertSettings):
    engine: Literal["vllm"]
    model: str
    args: dict[str, bool | int | float | str | list[Any] | dict[str, Any] | None] = {}
    max_concurrency: int | None = Field(default=None, ge=1)  # scheduling.max_concurrency
    cards: list[int | str] | None = Field(default=None, min_length=1)  # any; by index or UUID
    kv_cache: ByteCount | None = None
    allowed_media_domains: list[HostName] | None = None
    sleep: bool = True  # false: on the device or on disk, nothing in between


class RemoteExpert(_ExpertSettings):
    engine: Literal["remote"]
    base_url: BaseUrl
    model: str
    api_key_env: str | None = None
    headers: RequestHeaders = {}


class SimulatedExpert(_ExpertSettings):
    engine: Literal["simulated"]
    weights_bytes: ByteCount = 15 * 2**30
    start_seconds: float = Field(default=40.0, ge=0)
    wake_seconds: float = Field(default=0.4, ge=0)
    sleep_seconds: float = Field(default=0.3, ge=0)
    ttft_seconds: float = Field(default=0.05, ge=0)
    tokens_per_second: float = Field(default=50.0, gt=0)


ExpertSettings = Annotated[VllmExpert | RemoteExpert | SimulatedExpert, Field(discriminator="engine")]


def process_environment() -> Environment:
    """The variables that this process has now."""
    return Environment(os.environ)


class ServerConfig(_Settings):
    """The whole of `configs/serve.yaml`; that file explains every key."""

    http: HttpSettings = HttpSettings()
    keys: KeySettings = KeySettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings | None = None
    router: RouterSettings | None = None
    memory: MemorySettings = MemorySettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    vllm: VllmSettings = VllmSettings()
    state_directory: Path = Path("state")
    experts: list[ExpertSettings] = Field(min_length=1)
    aliases: dict[Alias, str] = {}
    _environment: Environment = PrivateAttr(default_factory=process_environment)

    @property
    def environment(self) -> Environment:
        """Where the values are of the variables that these settings name."""
        return self._environment

    @property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables that these settings name as holding secrets."""
        return secret_variables(self.model_dump())


def load_config(path: Path, environment: Environment | None = None) -> ServerConfig:
    """Read and check a configuration file; relative paths in it start at its folder.

    `environment` knows what was taken out of this process' environment.
    Raises ConfigError with one sentence that names the key, the value and what is allowed.
    """
    raw = read_settings_file(path, "configs/serve.yaml")
    try:
        config = ServerConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_mistake(error, raw)}") from error
    if environment is not None:
        config._environment = environment
    _refuse_twins(config, path)
    _refuse_false_aliases(config, path)
    _refuse_impossible_tiers(config, path)
    _refuse_contradictions(config, path)
    _refuse_small_room_for_bodies(config.http, path)
    return _with_paths_from(config, path.resolve().parent)


def proxies_of_environment() -> Proxies:
    """HTTP_PROXY and its like as they are now."""
    return Proxies.of(os.environ)


# What OpenTelemetry's SDK reads by itself, once, as tracing is built.
TRACING_SECRETS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")


def check_tracing_headers() -> None:
    """Raises ConfigError if a header that the SDK is to send with traces cannot be sent: it would fail each time."""
    for variable in TRACING_SECRETS:
        for header in os.environ.get(variable, "").split(","):
            name, _, value = header.partition("=")
            if value.strip():
                clean_secret(unquote(value), f"tracing: header '{name.strip()}'", variable)


def _refuse_twins(config: ServerConfig, path: Path) -> None:
    name, count = Counter(expert.name for expert in config.experts).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{path}: experts.{name}: the name is given {count} times")
    if name == "auto" or any(expert.name == "auto" for expert in config.experts):
        raise ConfigError(f"{path}: experts.auto: 'auto' is the router's own model name")


def _refuse_false_aliases(config: ServerConfig, path: Path) -> None:
    """Objectives are known when the artifact is."""
    experts = {expert.name for expert in config.experts}
    for alias, goal in config.aliases.items():
        if alias in experts or alias.partition(":")[0] == "auto":
            raise ConfigError(f"{path}: aliases.{alias}: the name is taken; an alias is one more name")
        if goal not in experts and goal.partition(":")[0] != "auto":
            raise ConfigError(f"{path}: aliases.{alias}: '{goal}' is neither an expert nor auto nor auto:OBJECTIVE")


def _refuse_impossible_tiers(config: ServerConfig, path: Path) -> None:
    depth = get_args(TierName).index
    for expert in config.experts:
        key = f"{path}: experts.{expert.name}"
        if expert.pin and expert.preload and depth(expert.preload) > depth(expert.pin):
            raise ConfigError(f"{key}.preload: '{expert.preload}' is below its pin, '{expert.pin}'")
        if isinstance(expert, VllmExpert) and not expert.sleep:
            for name, tier in (("pin", expert.pin), ("preload", expert.preload)):
                if tier == "host":
                    raise ConfigError(f"{key}.{name}: 'host' needs `sleep: true`; without it: device or disk")


def _refuse_contradictions(config: ServerConfig, path: Path) -> None:
    for expert in config.experts:
        if fault := contradiction(expert.vision, expert.modalities):
            raise ConfigError(f"{path}: experts.{expert.name}.modalities: {fault}; leave one of the two out")


def _refuse_small_room_for_bodies(http: HttpSettings, path: Path) -> None:
    if http.bodies < http.max_body:
        raise ConfigError(
            f"{path}: http.bodies: {http.bodies:,} bytes for all bodies are fewer than one may have "
            f"(http.max_body, {http.max_body:,})"
        )


def _with_paths_from(config: ServerConfig, folder: Path) -> ServerConfig:
    def absolute(path: Path) -> Path:
        return (folder / path).resolve()

    router = config.router and config.router.model_copy(update={"artifact": absolute(config.router.artifact)})
    command = config.vllm.command
    if "/" in command[0]:
        command = [os.path.normpath(folder / command[0]), *command[1:]]
    logs = config.vllm.log_directory and absolute(config.vllm.log_directory)
    vllm = config.vllm.model_copy(update={"command": command, "log_directory": logs})
    experts = [_with_model_from(expert, folder) for expert in config.experts]
    own = config.keys.file  # a link in its place is not followed: the file is replaced
    keys = config.keys.model_copy(update={"file": own and absolute(own.parent) / own.name})
    return config.model_copy(
        update={
            "keys": keys,
            "router": router,
            "vllm": vllm,
            "state_directory": absolute(config.state_directory),
            "experts": experts,
        }
    )


def _with_model_from(expert: ExpertSettings, folder: Path) -> ExpertSettings:
    """`./x`, `../x`, `/x`, `~/x` and what is there are folders; anything else is a Hugging Face id."""
    if not isinstance(expert, VllmExpert):
        return expert
    model = (folder / Path(expert.model).expanduser()).resolve()
    if not expert.model.startswith((".", "/", "~")) and not (model / "config.json").is_file():
        return expert
    if not (model / "config.json").is_file():
        raise ConfigError(f"experts.{expert.name}.model: there is no model in the folder {model}")
    return expert.model_copy(update={"model": str(model)})
