"""Typed settings of the server. The only reader of configuration files and of the environment."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from coe_server.errors import ConfigError

TierName = Literal["device", "host", "disk"]


class Share(BaseModel):
    """A part of the memory that is there, `0 < fraction <= 1`."""

    model_config = ConfigDict(frozen=True)
    fraction: float


def parse_bytes(value: object) -> object:
    """`70GiB`, `512MiB`, `1048576` as bytes, `80%` as a Share, `auto` as None."""
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not an amount of memory ({_AMOUNTS})")
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]?i?B)", value.strip())
    if match is None:
        raise ValueError(f"'{value}' is not an amount of memory ({_AMOUNTS})")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError(f"'{value}' is not between 0 and 100 %")
        return Share(fraction=number / 100)
    return int(number * _UNITS[unit])


_AMOUNTS = "70GiB, 512MiB, 80% or auto"
_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}

Amount = Annotated[int | Share | None, BeforeValidator(parse_bytes)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class HttpSettings(_Settings):
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)  # 0: any free port
    max_body: ByteCount = 32 * 2**20

    @property
    def is_loopback(self) -> bool:
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


class EmbeddingSettings(_Settings):
    """What embeds prompts before they are routed: an endpoint, or without `base_url` a model in this process."""

    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    timeout_seconds: float = Field(default=5.0, gt=0)


class RouterSettings(_Settings):
    artifact: Path
    objective: str = "quality"
    residency_tolerance: float = Field(default=0.0, ge=0.0, le=1.0)
    budget_window: int = Field(default=1000, ge=0, le=10_000)
    embeddings: EmbeddingSettings | None = None


class MemorySettings(_Settings):
    device: Amount = None
    host: Amount = None


class SchedulingSettings(_Settings):
    max_wait_seconds: float = Field(default=30.0, gt=0)
    queue_limit: int = Field(default=64, ge=1)
    queue_limit_total: int = Field(default=1024, ge=1)
    max_concurrency: int = Field(default=16, ge=1)
    max_generation_seconds: float = Field(default=120.0, gt=0)
    min_tenure_seconds: float = Field(default=0.0, ge=0)
    prefetch: bool = True


class VllmSettings(_Settings):
    command: str | list[str] = "vllm"
    platform: Literal["auto", "cpu", "cuda"] = "auto"
    start_timeout_seconds: float = Field(default=600.0, gt=0)
    kv_cache: ByteCount = 4 * 2**30
    process_memory: ByteCount = 1280 * 2**20  # host memory of one engine process, until it is measured
    log_directory: Path = Path("logs")


class _ExpertSettings(_Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    pin: TierName | None = None
    preload: TierName | None = None
    ttl_seconds: float | None = Field(default=None, gt=0)


class VllmExpert(_ExpertSettings):
    engine: Literal["vllm"]
    model: str
    args: dict[str, bool | int | float | str] = {}
    kv_cache: ByteCount | None = None
    sleep: bool = True  # false: on the device or on disk, nothing in between


class RemoteExpert(_ExpertSettings):
    engine: Literal["remote"]
    base_url: str = Field(pattern=r"^https?://")
    model: str
    api_key_env: str | None = None


class SimulatedExpert(_ExpertSettings):
    engine: Literal["simulated"]
    weights_bytes: ByteCount = 15 * 2**30
    start_seconds: float = Field(default=40.0, ge=0)
    wake_seconds: float = Field(default=0.4, ge=0)
    sleep_seconds: float = Field(default=0.3, ge=0)
    ttft_seconds: float = Field(default=0.05, ge=0)
    tokens_per_second: float = Field(default=50.0, gt=0)


ExpertSettings = Annotated[VllmExpert | RemoteExpert | SimulatedExpert, Field(discriminator="engine")]


class ServerConfig(_Settings):
    """The whole of `configs/serve.yaml`; that file explains every key."""

    http: HttpSettings = HttpSettings()
    router: RouterSettings | None = None
    memory: MemorySettings = MemorySettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    vllm: VllmSettings = VllmSettings()
    state_directory: Path = Path("state")
    experts: list[ExpertSettings] = Field(min_length=1)


def load_config(path: Path) -> ServerConfig:
    """Read and check a configuration file; relative paths in it start at its folder.

    Raises ConfigError with one sentence that names the key, the value and what is allowed.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of settings; configs/serve.yaml explains them")
    try:
        config = ServerConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(error, raw)}") from error
    _refuse_twins(config, path)
    return _with_paths_from(config, path.resolve().parent)


def secret_from_environment(key: str, variable: str) -> str:
    """The value of an environment variable that a setting names; ConfigError if it is not set."""
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"{key}: the environment variable '{variable}' is not set")
    return value


def _sentence(error: ValidationError, raw: Mapping[str, Any]) -> str:
    """The first mistake as `key.path: what is wrong`."""
    first = error.errors(include_url=False)[0]
    key = _dotted(first["loc"], raw)
    match first["type"]:
        case "extra_forbidden":
            return f"{key}: there is no such key"
        case "missing":
            return f"{key}: is missing"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{key}.engine: must be one of vllm, remote, simulated"
        case "literal_error":
            return f"{key}: '{first['input']}' is not one of {first['ctx']['expected']}"
        case "value_error":
            return f"{key}: {first['ctx']['error']}"
        case _:
            return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"


def _dotted(location: tuple[int | str, ...], raw: Mapping[str, Any]) -> str:
    """`experts.coder.pin` for ('experts', 2, 'vllm', 'pin')."""
    parts: list[str] = []
    node: Any = raw
    for step in location:
        if isinstance(step, int) and isinstance(node, list):
            node = node[step]
            parts.append(str(node.get("name", step)) if isinstance(node, dict) else str(step))
        elif isinstance(node, dict) and step in {"vllm", "remote", "simulated"} and node.get("engine") == step:
            continue  # pydantic names the member of the union; a person did not write it
        else:
            parts.append(str(step))
            node = node.get(step) if isinstance(node, dict) else None
    return ".".join(parts)


def _refuse_twins(config: ServerConfig, path: Path) -> None:
    name, count = Counter(expert.name for expert in config.experts).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{path}: experts.{name}: the name is given {count} times")
    if name == "auto" or any(expert.name == "auto" for expert in config.experts):
        raise ConfigError(f"{path}: experts.auto: 'auto' is the router's own model name")


def _with_paths_from(config: ServerConfig, folder: Path) -> ServerConfig:
    def absolute(path: Path) -> Path:
        return (folder / path).resolve()

    router = config.router and config.router.model_copy(update={"artifact": absolute(config.router.artifact)})
    command = [config.vllm.command] if isinstance(config.vllm.command, str) else config.vllm.command
    if "/" in command[0]:
        command = [os.path.normpath(folder / command[0]), *command[1:]]
    vllm = config.vllm.model_copy(update={"command": command, "log_directory": absolute(config.vllm.log_directory)})
    experts = [_with_model_from(expert, folder) for expert in config.experts]
    return config.model_copy(
        update={"router": router, "vllm": vllm, "state_directory": absolute(config.state_directory), "experts": experts}
    )


def _with_model_from(expert: ExpertSettings, folder: Path) -> ExpertSettings:
    """`./x`, `../x` and `/x` are folders; anything else is a Hugging Face id."""
    if not isinstance(expert, VllmExpert) or not expert.model.startswith((".", "/")):
        return expert
    model = (folder / expert.model).resolve()
    if not (model / "config.json").is_file():
        raise ConfigError(f"experts.{expert.name}.model: there is no model in the folder {model}")
    return expert.model_copy(update={"model": str(model)})
