"""What a front tells a node of a request, beside its body: in one header, which counts from a front alone. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from coe_server.cache.queue import Owner
from coe_server.errors import RequestError
from coe_server.keys import NAME
from coe_server.routing.decision import Priority

FORWARDED = "x-coe-forwarded"
_WRITTEN = re.compile(rf"priority=(high|normal|batch)(?:; key=({NAME.strip('^$')}); share=([0-9.e+-]{{1,24}}))?")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The caller's `coe.priority`, and its key with its share of the queues; no owner where the front has no keys."""

    priority: Priority = "normal"
    owner: Owner | None = None

    def as_header(self) -> str:
        """The header's value, which `read_forwarded` reads."""
        of_key = "" if self.owner is None else f"; key={self.owner.name}; share={self.owner.share:.6g}"
        return f"priority={self.priority}{of_key}"


NOTHING = Forwarded()


def read_forwarded(value: str | None) -> Forwarded:
    """What the header says; nothing without one. Raises RequestError."""
    if value is None:
        return NOTHING
    found = _WRITTEN.fullmatch(value)
    try:
        share = 1.0 if found is None or found[3] is None else float(found[3])
    except ValueError:
        share = 0.0
    if found is None or not 0.0 < share <= 1.0:
        raise RequestError(
            f"{FORWARDED}: {value[:200]!r} is not what this version's front sends; upgrade all nodes, then the front",
            FORWARDED,
        )
    owner = None if found[2] is None else Owner(found[2], share)
    return Forwarded(cast(Priority, found[1]), owner)
