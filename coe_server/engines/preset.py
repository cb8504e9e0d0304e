"""A preset: another expert's engine with members of the body filled, replaced or dropped; a name on its base's slot.

It has no engine: leases, residency, queue and bound are its base's, and so are the keys that decide about them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from coe_server.config.types import ByteCount, Settings
from coe_server.engines.engine import Engine
from coe_server.engines.settings import ExpertSettings, Surroundings, of_its_base
from coe_server.errors import ConfigError

# Read before an expert is chosen, or another part of the answer depends on it.
_OF_THE_CALLER = frozenset(("model", "coe", "messages", "prompt", "input", "system", "instructions", "tools"))
_OF_THE_CALLER |= frozenset(("stream", "stream_options", "n", "best_of", "previous_response_id"))
_LONGEST_NAME = 64
GeneratingEndpoint = Literal["chat", "completions", "responses", "messages"]


class Members(Settings):
    """What is filled, replaced and dropped in a body."""

    set: dict[str, Any] = Field(default={})
    force: dict[str, Any] = Field(default={})
    remove: list[str] = Field(default=[])

    def faults(self) -> Iterator[str]:
        """Each mistake, with its key; one that says that nothing is changed at all."""
        places: tuple[tuple[str, Mapping[str, Any]], ...] = (
            ("set", self.set),
            ("force", self.force),
            ("remove", dict.fromkeys(self.remove)),
        )
        seen: dict[str, str] = {}
        for place, members in places:
            for name, value in members.items():
                if fault := _fault(name, value) or (name in seen and f"is in {seen[name]}, too; leave it in one"):
                    yield f"{place}.{name}: {fault}"
                seen[name] = place

    def over(self, general: Members) -> Members:
        """These, and those of `general` that these do not name."""
        own = {*self.set, *self.force, *self.remove}
        return Members(
            set=self.set | {name: value for name, value in general.set.items() if name not in own},
            force={name: value for name, value in general.force.items() if name not in own} | self.force,
            remove=[*(name for name in general.remove if name not in own), *self.remove],
        )


class PresetExpert(ExpertSettings):
    engine: Literal["preset"]
    of: str
    set: dict[str, Any] = Field(default={})
    force: dict[str, Any] = Field(default={})
    remove: list[str] = Field(default=[])
    by_endpoint: dict[GeneratingEndpoint, Members] = Field(default={})  # what one endpoint has otherwise
    kv_cache: ByteCount | None = None  # refused with the sentence that the others have

    def build(self, surroundings: Surroundings) -> Engine:
        raise ConfigError(f"experts.{self.name}: has no engine of its own, it is a preset of '{self.of}'")

    @property
    def base(self) -> str | None:
        return self.of

    @property
    def model_of(self) -> str:
        return self.of

    def contradictions(self) -> Iterator[str]:
        yield from of_its_base(self)
        yield from (fault for fault in super().contradictions() if not fault.startswith("cards:"))
        yield from self.members.faults()
        for endpoint, own in self.by_endpoint.items():
            yield from (f"by_endpoint.{endpoint}.{fault}" for fault in own.faults())
        if not any(
            (one.set, one.force, one.remove) != ({}, {}, []) for one in (self.members, *self.by_endpoint.values())
        ):
            yield "set: is missing; a preset without set, force and remove is an alias (aliases)"

    @property
    def members(self) -> Members:
        """Those for every endpoint that has none of its own."""
        return Members(set=self.set, force=self.force, remove=self.remove)

    @property
    def members_by_endpoint(self) -> dict[str, Members]:
        """All members for each endpoint that has some of its own."""
        return {endpoint: own.over(self.members) for endpoint, own in self.by_endpoint.items()}


def _fault(name: str, value: object) -> str:
    if name in _OF_THE_CALLER:
        return "is the caller's: it is read before an expert is chosen"
    if not 0 < len(name) <= _LONGEST_NAME:
        return f"is no member's name: up to {_LONGEST_NAME} characters"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return f"{value!r} cannot be written as JSON; put it in quotes"
    return ""
