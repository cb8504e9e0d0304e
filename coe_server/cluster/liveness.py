"""Pure: whether a node may get requests, by what it said last and how long it has been silent."""

from __future__ import annotations

from dataclasses import replace

from coe_server.cluster.snapshot import PROTOCOL, ExpertOnNode, NodeSnapshot
from coe_server.errors import BadSnapshot

SILENT_SECONDS = 1.5  # three pulses: then it gets nothing new, so a dead node is unused within two seconds
# Four pulses: then answers that have begun end with an error, and what has no first word goes to another expert.
MUTE_SECONDS = 2.0
# Then its connections are broken off. A node short of processor time may be silent for seconds and go on: what has no
# first word yet, and no other node to go to, loses nothing by waiting for that.
LOST_SECONDS = 10.0
STEP_SECONDS = 0.1  # between two looks at the silence
_MOST_OF_A_STEP = 2 * STEP_SECONDS  # counted for one step, however long it took


class Liveness:
    """One node as it was heard. `unusable` says why it gets nothing new; None if it does.

    Silence is counted in short steps, so that seconds in which this process itself stood still do not count.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self.snapshot: NodeSnapshot | None = None
        self.unusable: str | None = "no answer yet"
        self.silent_seconds = 0.0
        self.connected_seconds: float | None = None
        self.is_lost = True  # no stream has begun since its connections were closed, or at all
        self.settled = False  # it has answered, or has failed to

    def begin(self, snapshot: NodeSnapshot) -> None:
        """A new stream."""
        self.snapshot = replace(snapshot, node=self._node)
        self.connected_seconds, self.is_lost, self.settled = 0.0, False, True
        self.welcome()

    def follow(self, changes: NodeSnapshot) -> None:
        """The next message of a stream. Raises BadSnapshot if one is missing before it."""
        before = self.snapshot
        if before is None or changes.sequence != before.sequence + 1:
            raise BadSnapshot(f"a node's snapshot: number {changes.sequence} does not follow the last one")
        self.snapshot = replace(changes, node=self._node, experts={**before.experts, **changes.experts})
        self.welcome()

    def welcome(self) -> None:
        """It is heard: use it, unless what it said is against that."""
        if self.snapshot is not None:
            self.unusable = _against(self.snapshot)

    def step(self, seconds: float) -> None:
        """Count this time as silence: some of it, and the node gets nothing new; more, and it is lost."""
        self.silent_seconds += min(seconds, _MOST_OF_A_STEP)
        if self.connected_seconds is not None:
            self.connected_seconds += seconds
        if self.is_lost or _stops(self.snapshot):
            return
        if self.silent_seconds > LOST_SECONDS:
            self.is_lost = True
            self.unusable = f"no pulse for {LOST_SECONDS:g} s; its connections are closed"
        elif self.is_silent and self.unusable is None:
            self.unusable = f"no pulse for {SILENT_SECONDS:g} s"

    def disconnect(self, why: str | None) -> None:
        """Its stream has ended; without `why` for a reason that is known already."""
        self.connected_seconds, self.settled = None, True
        self.unusable = self.unusable if why is None else why

    @property
    def is_silent(self) -> bool:
        """True if it has missed its pulses."""
        return self.silent_seconds > SILENT_SECONDS

    @property
    def is_mute(self) -> bool:
        """True if it has missed so many that its answers count as lost. One that stops may take its time."""
        return self.silent_seconds > MUTE_SECONDS and not _stops(self.snapshot)

    def expert(self, name: str) -> ExpertOnNode | None:
        """An expert as it told of it last."""
        return None if self.snapshot is None else self.snapshot.experts.get(name)


def _stops(told: NodeSnapshot | None) -> bool:
    return told is not None and told.draining


def _against(told: NodeSnapshot) -> str | None:
    """Why a node that says this gets nothing new."""
    if not told.understood:
        return (
            f"it speaks protocol {told.protocol} (version {told.version}), this front {PROTOCOL}: "
            "upgrade all nodes, then the front"
        )
    return "it stops" if _stops(told) else None
