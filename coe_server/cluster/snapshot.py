"""What a node says of itself: its experts, their tiers, queues and waits. Only durations, never times of a clock.

Values with JSON out and in. A snapshot that arrives is checked; fields that a later version added are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from coe_server.config.types import ServedName
from coe_server.errors import BadSnapshot

PROTOCOL = 1  # of snapshots and of the moves that a front asks for; another one is not understood
MOST_EXPERTS = 10_000

TierOnNode = Literal["device", "host", "disk", "remote"]
StateOnNode = Literal["disk", "starting", "device", "draining", "host", "failed"]
PinOnNode = Literal["device", "host", "disk"]

_Bytes = Annotated[int, Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Word = Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
_Words = Annotated[tuple[_Word, ...], Field(max_length=64)]


def _printable(text: str) -> str:
    """The sentence without control characters, which could forge a line of a log."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


_Sentence = Annotated[str, Field(max_length=10_000), AfterValidator(_printable)]
_CONFIG = ConfigDict(extra="ignore")


@dataclass(frozen=True, slots=True)
class FootprintOnNode:
    """Bytes of an expert there: device bytes on each of its `width` cards, host bytes in total."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    device_awake_bytes: _Bytes = 0
    device_asleep_bytes: _Bytes = 0
    host_bytes: _Bytes = 0
    width: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True, slots=True)
class CapabilitiesOnNode:
    """What an expert can take; None, or an unlisted modality, means unknown."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    context_tokens: Annotated[int, Field(gt=0)] | None = None
    modalities: Annotated[dict[_Word, bool], Field(max_length=64)] = field(default_factory=dict)
    tools: bool | None = None
    endpoints: _Words | None = None


@dataclass(frozen=True, slots=True)
class ExpertOnNode:
    """One expert of a node, at one moment.

    `wait_seconds` is the predicted wait of a request that arrives now: the queue before it, and the expert's move to
    the device. `switch_seconds` is that move alone, 0 on the device. `leases` counts requests in its engine, `queued`
    those that wait, `room` those that would be admitted at once.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    name: ServedName
    tier: TierOnNode
    state: StateOnNode = "device"
    seat: Annotated[tuple[_Count, ...], Field(max_length=64)] = ()  # cards of its process, or of its last one
    leases: _Count = 0
    queued: _Count = 0
    room: _Count = 0
    max_concurrency: Annotated[int, Field(ge=1)] = 1
    wait_seconds: _Seconds = 0.0
    switch_seconds: _Seconds = 0.0
    start_seconds: _Seconds = 0.0  # from disk to the device
    return_seconds: _Seconds = 0.0  # to the device again, from the tier to which it goes when it is evicted
    service_seconds: _Seconds = 0.0  # of a usual answer
    pin: PinOnNode = "disk"
    failure: _Sentence | None = None
    returns_seconds: _Seconds | None = None  # until a failed expert admits requests again
    base: ServedName | None = None  # the expert whose engine it shares
    may_have_been_paid: bool = False  # served by another host: a request sent there is never repeated
    bytes_device: _Bytes = 0  # held now
    bytes_host: _Bytes = 0
    footprint: FootprintOnNode = field(default_factory=FootprintOnNode)
    capabilities: CapabilitiesOnNode = field(default_factory=CapabilitiesOnNode)


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """A node and all of its experts, at one moment.

    `process` is a random word that each start of the server draws anew. `sequence` counts the changes since that start.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    node: ServedName
    protocol: int
    sequence: _Count
    experts: Annotated[Mapping[ServedName, ExpertOnNode], Field(max_length=MOST_EXPERTS)]
    draining: bool = False  # it takes no new request: it stops, or an operator drains it
    process: _Word = "unknown"
    version: Annotated[str, Field(max_length=64, pattern=r"^[\x21-\x7e]+$")] = "unknown"
    ready: bool = True  # its preloading is done
    capacity_bytes: tuple[_Bytes, ...] = ()  # device memory of each card
    used_bytes: tuple[_Bytes, ...] = ()
    host_capacity_bytes: _Bytes = 0
    host_used_bytes: _Bytes = 0

    def __post_init__(self) -> None:
        for name, expert in self.experts.items():
            if name != expert.name:
                raise ValueError(f"the expert '{expert.name}' is listed as '{name}'")

    @property
    def understood(self) -> bool:
        """False if it speaks another protocol than this program: it gets no request."""
        return self.protocol == PROTOCOL

    def with_experts(self, changed: Iterable[ExpertOnNode]) -> NodeSnapshot:
        """The snapshot with these experts replaced."""
        return replace(self, experts={**self.experts, **{one.name: one for one in changed}})

    def as_json(self) -> dict[str, Any]:
        """Its JSON object, which `read_snapshot` reads."""
        return asdict(self)


def read_snapshot(text: str | bytes) -> NodeSnapshot:
    """The snapshot in a JSON text. Raises BadSnapshot with the first mistake.

    Of a snapshot in another protocol only the node's name, protocol and version are read.
    """
    try:
        raw = json.loads(text)
        if isinstance(raw, dict) and raw.get("protocol") != PROTOCOL:
            raw = {key: raw[key] for key in ("node", "protocol", "version") if key in raw} | _UNREAD
        return _SNAPSHOT.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadSnapshot(f"a node's snapshot: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BadSnapshot(f"a node's snapshot is not JSON: {error}") from error


_UNREAD = {"sequence": 0, "experts": {}}
_SNAPSHOT = TypeAdapter(NodeSnapshot)
