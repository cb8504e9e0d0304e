"""What the settings of all kinds of experts have in common, and the surroundings their engines are built in.

A kind of expert is one file: a subclass of `ExpertSettings`, which builds its engine, and the engine. Knows no kind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field

from coe_server.config.addresses import HostName
from coe_server.config.environment import Environment
from coe_server.config.proxies import Proxy
from coe_server.config.types import ByteCount, Modality, ServedName, Settings, contradiction
from coe_server.engines.cards import Cards
from coe_server.engines.cores import Cores
from coe_server.engines.engine import Engine, Footprint
from coe_server.engines.user import EngineUser
from coe_server.errors import ConfigError

Platform = Literal["cpu", "cuda"]
TierName = Literal["device", "host", "disk"]
EndpointName = Literal["chat", "completions", "responses", "messages", "embeddings", "tokenize", "rerank", "score"]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class VllmSettings(Settings):
    """The section `vllm`; start timeout, logs and user are those of every engine that is a process here."""

    command: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] = Field(default=["vllm"])
    platform: Literal["auto", "cpu", "cuda"] = "auto"
    start_timeout_seconds: float = Field(default=600.0, gt=0)
    kv_cache: ByteCount = 4 * 2**30
    process_memory: ByteCount = 1280 * 2**20  # host memory of one engine process, until it is measured
    log_directory: Path | None = None  # logs in state_directory, which is one server's alone
    allowed_media_domains: list[HostName] = Field(default=[])
    user: str | None = None  # the server's own


def _unknown_size(launch: Any) -> int:
    raise ConfigError(f"'{launch.model}' is not downloaded")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the server has for an engine, beside the settings of its expert."""

    environment: Environment
    secret_variables: frozenset[str]  # names of variables that no engine inherits
    log_directory: Path
    platform: Platform
    vllm: VllmSettings
    longest_answer_seconds: float
    max_concurrency: int  # answers inside one engine at a time, unless its expert has a number of its own
    proxy_for: Callable[[str], Proxy | None]  # the proxy on the way to an address
    whole_device_bytes: Callable[[], int]  # what an engine takes that nothing is known of: it starts alone
    size_of_missing: Callable[[Any], int] = _unknown_size  # bytes of a launch's weights that are not on this machine
    measured: Mapping[str, Footprint] = field(default_factory=dict)  # footprints by an earlier start, by their key
    cards: Cards = field(default_factory=Cards)  # of this machine, shared by its engines
    memory_cards: int = 1  # cards into which memory is divided where there is no GPU
    cores: tuple[Cores, ...] = ()  # of each card, where this machine's RAM and cores are divided into cards

    @property
    def inherited(self) -> dict[str, str]:
        """Our environment without secrets; an engine gets the part of it that it needs."""
        return self.environment.without(self.secret_variables)

    @property
    def user(self) -> EngineUser | None:
        """The system user of engines; None for the server's own. Raises ConfigError if it cannot be had."""
        return EngineUser.called(self.vllm.user) if self.vllm.user else None


class ExpertSettings(Settings):
    """One entry of `experts`. What other modules ask of a kind is asked here; a kind overrides what differs."""

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
    cards: list[int | str] | None = Field(default=None, min_length=1)  # any; by index or UUID

    @abstractmethod
    def build(self, surroundings: Surroundings) -> Engine:
        """The engine, not started. Raises ConfigError where something it needs is missing."""

    @property
    def remote(self) -> bool:
        """Whether the model runs on another server: it takes no memory here and is always loaded."""
        return False

    @property
    def base(self) -> str | None:
        """The expert whose engine it shares, under a name of its own; None for one with an engine of its own."""
        return None

    @property
    def cards_taken(self) -> int:
        """The expert's width: how many cards its engine takes."""
        return 1

    @property
    def concurrency(self) -> int | None:
        """Answers inside its engine at a time; None: as for every expert."""
        return self.max_concurrency

    @property
    def weights_here(self) -> bool:
        """Whether its engine takes memory of this machine."""
        return False

    @property
    def wakes_by_copying(self) -> bool:
        """Whether a wake on a CPU is a copy of the weights, as fast as this machine's memory is."""
        return False

    @property
    def model_name(self) -> str:
        """The name under which the engine knows its model."""
        return self.name

    @property
    def served_endpoints(self) -> tuple[EndpointName, ...] | None:
        """The endpoints that it serves; None where they are not known."""
        return None if self.endpoints is None else tuple(self.endpoints)

    @property
    def longest_context_tokens(self) -> int | None:
        """Most tokens of a request and its answer together; None where that is not known."""
        return self.context_tokens

    @property
    def timings(self) -> Mapping[str, float] | None:
        """Durations that are configured, as `Timing` has them; None for an engine that has real ones."""
        return None

    def contradictions(self) -> Iterator[str]:
        """What cannot be meant, as `key: sentence`; the first one stops the start."""
        depth = get_args(TierName).index
        if self.pin and self.preload and depth(self.preload) > depth(self.pin):
            yield f"preload: '{self.preload}' is below its pin, '{self.pin}'"
        if self.cards and self.remote:
            yield "cards: its engine takes no card of this machine; leave the key out"
        if fault := contradiction(self.vision, self.modalities):
            yield f"modalities: {fault}; leave one of the two out"

    def never_in_host(self, way_out: str) -> Iterator[str]:
        """The contradictions of an engine that cannot sleep."""
        for name, tier in (("pin", self.pin), ("preload", self.preload)):
            if tier == "host":
                yield f"{name}: 'host' needs {way_out}; without it: device or disk"

    def dangers(self) -> Iterator[str]:
        """What gives models or callers more of this machine than an answer needs, as `key: sentence`."""
        yield from ()

    def without_effect(self) -> Iterator[str]:
        """Settings that never take effect, as `key: sentence`."""
        yield from ()

    def in_folder(self, folder: Path) -> Self:
        """With relative paths from a folder, the configuration file's."""
        return self
