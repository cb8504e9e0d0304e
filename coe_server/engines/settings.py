"""Settings common to all kinds of experts, and the surroundings that engines are built with.

Each kind is one file with a subclass of `ExpertSettings`, which builds the engine, and the engine itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, get_args

from pydantic import BeforeValidator, Field

from coe_server.config.addresses import HostName
from coe_server.config.environment import Environment
from coe_server.config.proxies import Proxy
from coe_server.config.types import ByteCount, Modality, ServedName, Settings, contradiction
from coe_server.engines.adapter import Adapter
from coe_server.engines.cards import Cards
from coe_server.engines.cores import Cores
from coe_server.engines.engine import Engine, Footprint
from coe_server.engines.user import EngineUser
from coe_server.errors import ConfigError

Platform = Literal["cpu", "cuda"]
TierName = Literal["device", "host", "disk"]
EndpointName = (
    Literal["chat", "completions", "responses", "messages", "embeddings", "tokenize", "rerank", "score"]
    | Literal["audio.transcriptions", "audio.translations", "audio.speech", "images.generations", "images.edits"]
)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class VllmSettings(Settings):
    """The section `vllm`. Start timeout, logs and user apply to every engine that is a local process."""

    command: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] = Field(default=["vllm"])
    platform: Literal["auto", "cpu", "cuda"] = "auto"
    start_timeout_seconds: float = Field(default=600.0, gt=0)
    kv_cache: ByteCount = 4 * 2**30
    process_memory: ByteCount = 1280 * 2**20  # host memory of an engine process, until measured
    log_directory: Path | None = None  # default: logs in state_directory, which no two servers share
    allowed_media_domains: list[HostName] = Field(default=[])
    user: str | None = None  # default: the server's user


class ReadsAdapter(Protocol):
    """An expert that is an adapter of another one."""

    name: str
    adapter: str  # a folder or a hub id

    def found(self, environment: Mapping[str, str]) -> Adapter | None:
        """The adapter; None if it is on the hub and not downloaded. Raises ConfigError."""


def _unknown_size(launch: Any) -> int:
    raise ConfigError(f"'{launch.model}' is not downloaded")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an engine needs from the server, beside its expert's settings."""

    environment: Environment
    secret_variables: frozenset[str]  # variables that no engine inherits
    log_directory: Path
    platform: Platform
    vllm: VllmSettings
    longest_answer_seconds: float
    max_concurrency: int  # concurrent answers per engine, unless its expert has a number of its own
    proxy_for: Callable[[str], Proxy | None]  # address -> proxy
    whole_device_bytes: Callable[[], int]  # assumed for an engine of unknown size, which then starts alone
    size_of_missing: Callable[[Any], int] = _unknown_size  # bytes of weights that are not downloaded
    measured: Mapping[str, Footprint] = field(default_factory=dict)  # by key, from earlier starts
    cards: Cards = field(default_factory=Cards)  # of this machine, shared by all engines
    memory_cards: int = 1  # cards into which memory is divided where there is no GPU
    cores: tuple[Cores, ...] = ()  # of each card, where this machine's RAM and cores are divided into cards
    adapters: Mapping[str, Sequence[ReadsAdapter]] = field(default_factory=dict)  # by the name of their base

    @property
    def inherited(self) -> dict[str, str]:
        """The server's environment without secrets; an engine gets the part that it needs."""
        return self.environment.without(self.secret_variables)

    @property
    def user(self) -> EngineUser | None:
        """The system user of engines; None for the server's. Raises ConfigError if it cannot be used."""
        return EngineUser.called(self.vllm.user) if self.vllm.user else None


_OF_ITS_BASE = ("pin", "preload", "ttl_seconds", "kv_cache", "cards", "max_concurrency")


class ExpertSettings(Settings):
    """One entry of `experts`. Other modules use only this interface; each kind overrides what differs."""

    remote: ClassVar[bool] = False  # the model runs on another server: it uses no memory here and is always loaded
    weights_here: ClassVar[bool] = False  # its engine uses memory of this machine
    launched_by_base: ClassVar[bool] = False  # its base's engine knows it: that restarts if it cannot take a change
    wakes_by_copying: ClassVar[bool] = False  # a wake on a CPU copies the weights, so memory speed is its limit
    takes_adapters: ClassVar[bool] = False  # its engine can answer under the names of LoRA adapters

    engine: str
    name: ServedName
    pin: TierName | None = None
    preload: TierName | None = None
    ttl_seconds: float | None = Field(default=None, gt=0)
    max_concurrency: int | None = Field(default=None, ge=1)  # scheduling.max_concurrency
    context_tokens: int | None = Field(default=None, gt=0)
    vision: bool | None = None
    modalities: list[Modality] | None = None
    tools: bool | None = None
    endpoints: list[EndpointName] | None = Field(default=None, min_length=1)
    cards: list[int | str] | None = Field(default=None, min_length=1)  # index or UUID; default: any

    @abstractmethod
    def build(self, surroundings: Surroundings) -> Engine:
        """Build the engine without starting it. Raises ConfigError if something it needs is missing."""

    @property
    def base(self) -> str | None:
        """The expert whose engine it shares, under a name of its own; None for one with an engine of its own."""
        return None

    def unfit_base(self, base: ExpertSettings) -> str | None:
        """Why it cannot share this expert's engine; None if it can."""
        return None

    @property
    def model_of(self) -> str:
        """The expert whose model its engine is asked for: itself, unless it only shares an engine."""
        return self.name

    @property
    def cards_taken(self) -> int:
        """The expert's width: how many cards its engine takes."""
        return 1

    @property
    def concurrency(self) -> int | None:
        """Answers inside its engine at a time; None: as for every expert."""
        return self.max_concurrency

    @property
    def model_name(self) -> str:
        """The model's name in the engine."""
        return self.name

    @property
    def served_endpoints(self) -> tuple[EndpointName, ...] | None:
        """The endpoints that it serves; None if unknown."""
        return None if self.endpoints is None else tuple(self.endpoints)

    @property
    def longest_context_tokens(self) -> int | None:
        """Most tokens of a request and its answer together; None if unknown."""
        return self.context_tokens

    @property
    def timings(self) -> Mapping[str, float] | None:
        """Configured durations, named as in `Timing`; None for an engine with real ones."""
        return None

    def contradictions(self) -> Iterator[str]:
        """Contradictory settings, as `key: sentence`; the first one stops the start."""
        depth = get_args(TierName).index
        if self.pin and self.preload and depth(self.preload) > depth(self.pin):
            yield f"preload: '{self.preload}' is below its pin, '{self.pin}'"
        if self.cards and self.remote:
            yield "cards: its engine uses no card of this machine; leave the key out"
        if fault := contradiction(self.vision, self.modalities):
            yield f"modalities: {fault}; leave one of the two out"

    def dangers(self) -> Iterator[str]:
        """Settings that give models or clients more rights on this machine than needed, as `key: sentence`."""
        yield from ()

    def without_effect(self) -> Iterator[str]:
        """Settings that never take effect, as `key: sentence`."""
        yield from ()

    def in_folder(self, folder: Path) -> Self:
        """The settings with paths relative to `folder`, the configuration file's, made absolute."""
        return self


def never_in_host(expert: ExpertSettings, way_out: str) -> Iterator[str]:
    """The contradictions of an engine that cannot sleep."""
    for name, tier in (("pin", expert.pin), ("preload", expert.preload)):
        if tier == "host":
            yield f"{name}: 'host' needs {way_out}; without it: device or disk"


def of_its_base(expert: ExpertSettings) -> Iterator[str]:
    """The keys that an expert with a base must leave to it, each with a sentence."""
    for key in _OF_ITS_BASE:
        if getattr(expert, key) is not None:
            yield f"{key}: belongs to its base, '{expert.base}'; give it there"
