"""Typed settings of the server. The only reader of configuration files and of the environment."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PrivateAttr, ValidationError

from coe_server.config.addresses import WebAddress
from coe_server.config.environment import Environment, secret_variables
from coe_server.config.file import read_settings_file
from coe_server.config.http import HttpSettings, small_room_for_bodies
from coe_server.config.mistakes import all_mistakes
from coe_server.config.nodes import NodesSettings, Role, node_mistakes
from coe_server.config.proxies import Proxies
from coe_server.config.router import RouterSettings
from coe_server.config.types import Alias, Amount, Amounts, Settings
from coe_server.engines.command import CommandExpert
from coe_server.engines.lora import LoraExpert
from coe_server.engines.preset import PresetExpert
from coe_server.engines.remote import RemoteExpert
from coe_server.engines.settings import VllmSettings
from coe_server.engines.simulated import SimulatedExpert
from coe_server.engines.vllm.settings import VllmExpert
from coe_server.errors import ConfigError


class LogSettings(Settings):
    """The log on standard error, and the decision log in `state_directory`."""

    format: Literal["auto", "json", "text"] = "auto"
    prompts: bool = False  # prompts are stored only if the operator enables it
    decisions: bool = True
    keep_rows: int = Field(default=100_000, ge=1)
    keep_days: float = Field(default=30.0, gt=0)


class TracingSettings(Settings):
    """OpenTelemetry traces of requests. For keys that are None the SDK uses its own variables (OTEL_...)."""

    endpoint: WebAddress | None = None
    service_name: str | None = None
    sample_ratio: float | None = Field(default=None, ge=0.0, le=1.0)


class KeySettings(Settings):
    """The accepted API keys. Without any key every client that reaches the server is accepted."""

    file: Path | None = None
    api_key_env: str | None = None
    admin_key_env: str | None = None
    scrape_key_env: str | None = None
    node_key_env: str | None = None  # opens /v1 and /node to a front
    open: bool = False  # allow a non-loopback address without keys


class MemorySettings(Settings):
    device: Amounts = None  # of each card, or a list with one for each
    host: Amount = None
    cards: int | None = Field(default=None, ge=1, le=64)  # into which RAM and cores are divided, without a GPU


class SchedulingSettings(Settings):
    max_wait_seconds: float = Field(default=30.0, gt=0)
    queue_limit: int = Field(default=64, ge=1)
    queue_limit_total: int = Field(default=1024, ge=1)
    max_concurrency: int = Field(default=16, ge=1)
    max_fan_out: int = Field(default=128, ge=1)
    max_generation_seconds: float = Field(default=120.0, gt=0)
    min_tenure_seconds: float = Field(default=0.0, ge=0)
    prefetch: bool = True


# Each kind has one file with its settings and its engine.
AnyExpert = VllmExpert | RemoteExpert | CommandExpert | LoraExpert | PresetExpert | SimulatedExpert  # all kinds


def process_environment() -> Environment:
    """The environment of this process."""
    return Environment(os.environ)


class ServerConfig(Settings):
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
    experts: list[Annotated[AnyExpert, Field(discriminator="engine")]]
    role: Role = "server"
    nodes: NodesSettings = Field(default=[])
    aliases: dict[Alias, str] = Field(default={})
    _environment: Environment = PrivateAttr(default_factory=process_environment)

    @property
    def environment(self) -> Environment:
        """The environment that holds the variables named in these settings."""
        return self._environment

    @property
    def bases(self) -> dict[str, str]:
        """The experts that share another's engine, by name, each with the one that has it."""
        return {expert.name: expert.base for expert in self.experts if expert.base is not None}

    @property
    def has_nodes(self) -> bool:
        """True for a front: experts of nodes come and go while it runs."""
        return not isinstance(self.nodes, list) or bool(self.nodes)

    @property
    def with_engines(self) -> list[AnyExpert]:
        """The experts that have an engine of their own."""
        return [expert for expert in self.experts if expert.base is None]

    @property
    def engine_models(self) -> dict[str, str]:
        """Each expert with the name under which its engine knows the model."""
        own = {expert.name: expert.model_name for expert in self.experts}
        return {expert.name: own[expert.model_of] for expert in self.experts}

    @property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables with secrets that these settings name."""
        return secret_variables(self.model_dump())


_MODELS_OF_OTHER_SERVERS = {"model_list": (list, "LiteLLM"), "models": (dict, "llama-swap"), "model": (str, "vLLM")}


def load_config(path: Path, environment: Environment | None = None) -> ServerConfig:
    """Read and check a configuration file; paths in it are relative to its folder.

    `environment`: holds the secrets that were removed from the process's environment. Raises ConfigError with one
    sentence that names key, value and what is allowed.
    """
    config, mistakes = read_config(path)
    if mistakes or config is None:
        raise ConfigError(f"{path}: {mistakes[0]}")
    if environment is not None:
        config._environment = environment
    return config


def read_config(path: Path) -> tuple[ServerConfig | None, list[str]]:
    """The settings (None if they cannot be parsed), and a sentence for every mistake.

    Raises ConfigError if the file is not readable YAML.
    """
    raw = read_settings_file(path, "`coe config --example serve`")
    try:
        config = ServerConfig.model_validate(raw)
    except ValidationError as error:
        return None, [*_of_another_server(raw), *all_mistakes(error, raw, ServerConfig, {"engine": _kinds()})]
    mistakes = [
        *_twins(config),
        *_false_aliases(config),
        *_contradictions(config),
        *_without_base(config),
        *small_room_for_bodies(config.http),
        *_cannot_learn(config),
        *node_mistakes(config.nodes),
        *_false_roles(config),
    ]
    found = _with_paths_from(config, path.resolve().parent, mistakes)
    return found, mistakes


def _of_another_server(raw: Mapping[str, Any]) -> Iterator[str]:
    for key, (kind, server) in _MODELS_OF_OTHER_SERVERS.items():
        if "experts" not in raw and isinstance(raw.get(key), kind):
            yield (
                f"{key}: this looks like a configuration of {server}: docs/coming-from.md has the name of each setting"
                " here, and `coe init` writes a first configuration"
            )


def proxies_of_environment() -> Proxies:
    """The proxies of the present environment."""
    return Proxies.of(os.environ)


def _twins(config: ServerConfig) -> Iterator[str]:
    counts = Counter(expert.name for expert in config.experts)
    for name, count in counts.most_common():
        if count > 1:
            yield f"experts.{name}: the name is given {count} times"
    if "auto" in counts:
        yield "experts.auto: the name 'auto' is reserved for the router"


def _false_aliases(config: ServerConfig) -> Iterator[str]:
    """Invalid aliases; objectives are checked later, with the artifact."""
    experts = {expert.name for expert in config.experts}
    for alias, goal in config.aliases.items():
        if alias in experts or alias.partition(":")[0] == "auto":
            yield f"aliases.{alias}: the name belongs to an expert or to the router (auto); choose another"
        if goal not in experts and goal.partition(":")[0] != "auto" and not config.has_nodes:
            known = ", ".join(sorted(experts))
            yield f"aliases.{alias}: '{goal}' is neither an expert nor auto nor auto:OBJECTIVE; experts: {known}"


def _kinds() -> str:
    """The kinds of experts: the allowed values of `engine`."""
    return ", ".join(get_args(kind.model_fields["engine"].annotation)[0] for kind in get_args(AnyExpert))


def _contradictions(config: ServerConfig) -> Iterator[str]:
    for expert in config.experts:
        for fault in expert.contradictions():
            yield f"experts.{expert.name}.{fault}"


def _without_base(config: ServerConfig) -> Iterator[str]:
    """Presets and adapters of what is no expert with an engine, or has one that cannot be shared so."""
    known = {expert.name: expert for expert in config.experts}
    for expert in config.experts:
        if expert.base is None:
            continue
        key = f"experts.{expert.name}.{type(expert).model_fields['of'].alias or 'of'}"
        base = known.get(expert.base)
        if base is None:
            yield f"{key}: there is no expert '{expert.base}'"
        elif base.base is not None and base.model_of == base.name:
            yield f"{key}: '{base.name}' is an adapter of '{base.base}' and cannot be a base"
        elif base.base is not None:
            yield f"{key}: '{base.name}' has no engine of its own; name '{base.base}'"
        elif fault := expert.unfit_base(base):
            yield f"{key}: {fault}"


def _cannot_learn(config: ServerConfig) -> Iterator[str]:
    """Learning without a log, or without a judge that is there."""
    router = config.router
    if router is None:
        return
    if not config.log.decisions and (router.exploration != "off" or router.compare or router.shadow or router.split):
        yield "router: exploration, compare, shadow and split are kept in the decision log; set log.decisions: true"
    if router.judge is not None and router.judge not in {expert.name for expert in config.experts}:
        yield f"router.judge: there is no expert '{router.judge}'"
    if router.judge in {expert.name for expert in config.experts if expert.remote} and not router.compare_remote:
        yield f"router.judge: '{router.judge}' is remote and would get prompts and answers; allow it (compare_remote)"


def _false_roles(config: ServerConfig) -> Iterator[str]:
    """Settings that a node, a front, or a server alone cannot have."""
    if not config.experts and not config.has_nodes:
        yield "experts: a server needs at least one; `experts: []` is for a front with nodes"
    if config.role == "node" and config.router is not None:
        yield "router: a node serves its experts by name, the front routes; leave the section out"
    if config.role == "node" and config.has_nodes:
        yield "nodes: a node has no nodes of its own; leave the key out, or set role: server"
    if config.role != "node" and config.keys.node_key_env is not None:
        yield "keys.node_key_env: is the key of a node; set role: node"


def _with_paths_from(config: ServerConfig, folder: Path, mistakes: list[str]) -> ServerConfig:
    """Make paths relative to `folder` absolute; a missing model folder is added to the mistakes."""

    def absolute(path: Path) -> Path:
        return (folder / path).resolve()

    command = config.vllm.command
    if "/" in command[0]:
        command = [os.path.normpath(folder / command[0]), *command[1:]]
    logs = config.vllm.log_directory and absolute(config.vllm.log_directory)
    vllm = config.vllm.model_copy(update={"command": command, "log_directory": logs})
    experts = []
    for expert in config.experts:
        try:
            experts.append(expert.in_folder(folder))
        except ConfigError as error:
            mistakes.append(str(error))
    nodes = config.nodes
    own = config.keys.file  # not resolved: a symbolic link would be replaced
    keys = config.keys.model_copy(update={"file": own and absolute(own.parent) / own.name})
    return config.model_copy(
        update={
            "http": config.http.in_folder(absolute),
            "keys": keys,
            "nodes": [one.in_folder(absolute) for one in nodes]
            if isinstance(nodes, list)
            else nodes.in_folder(absolute),
            "router": config.router and config.router.in_folder(absolute),
            "vllm": vllm,
            "state_directory": absolute(config.state_directory),
            "experts": experts,
        }
    )
