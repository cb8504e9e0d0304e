"""The steps by which ratings moved the score table, in one JSON file of `state_directory`.

Each step holds the whole table after it, so that undoing one is dropping it. The time of an undone step and the one
before it bound the ratings that no longer count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coe_server.errors import ConfigError, NothingToUndo
from coe_server.system.files import private_folder, replacing

MOST_STEPS = 1_000  # older ones are dropped; the table is in the newest

Table = Mapping[str, Mapping[str, float]]  # category -> expert -> change of its score


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the time of its newest decision (seconds since the epoch), its ratings and their source,
    and the table after it."""

    time: float
    ratings: int
    source: str
    table: Table


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps in force, oldest first; `undone`: (after, until), the times of ratings that do not count."""

    steps: Sequence[Step] = ()
    undone: Sequence[tuple[float, float]] = ()
    number: int = 0  # of all steps ever made and undone, so that each table has a version of its own

    @property
    def table(self) -> Table:
        return self.steps[-1].table if self.steps else {}

    def counts(self, time: float) -> bool:
        """True unless a rating of this time belongs to an undone step."""
        return not any(after < time <= until for after, until in self.undone)

    def and_then(self, step: Step) -> Steps:
        return Steps((*self.steps, step)[-MOST_STEPS:], self.undone, self.number + 1)

    def without_last(self, now: float) -> Steps:
        """The steps before the last one. Raises NothingToUndo without a step."""
        if not self.steps:
            raise NothingToUndo("there is no step to undo: ratings have not moved a score")
        before = self.steps[-2].time if len(self.steps) > 1 else 0.0
        return Steps(self.steps[:-1], (*self.undone, (before, now)), self.number + 1)


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    time: float
    ratings: int
    source: str
    table: dict[str, dict[str, Annotated[float, Field(ge=-1.0, le=1.0)]]]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    steps: list[_Step] = []
    undone: list[tuple[float, float]] = []
    number: int = 0


def read_steps(path: Path) -> Steps:
    """The steps in a file; none if there is none. Raises ConfigError for a file that is not one of ours."""
    try:
        found = _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Steps()
    except (OSError, ValidationError) as error:
        told = str(error).splitlines()[0]
        raise ConfigError(f"{path}: cannot be read as learned steps ({told}); move it away to start anew") from error
    return Steps([Step(**dict(one)) for one in found.steps], found.undone, found.number)


def write_steps(path: Path, steps: Steps) -> None:
    """Replace the file as a whole. Raises OSError."""
    private_folder(path.parent)
    with replacing(path) as out:
        plain = {"steps": [asdict(one) for one in steps.steps], "undone": list(steps.undone), "number": steps.number}
        out.write(_File.model_validate(plain).model_dump_json(indent=1) + "\n")


def steps_as_json(steps: Steps) -> list[dict[str, Any]]:
    """Each step with what it moved, newest first: for the page and the command."""
    found = []
    for before, step in zip((None, *steps.steps), steps.steps, strict=False):
        old: Table = before.table if before is not None else {}
        moved = [
            {"category": category, "expert": expert, "before": old.get(category, {}).get(expert, 0.0), "after": after}
            for category, row in step.table.items()
            for expert, after in row.items()
            if abs(after - old.get(category, {}).get(expert, 0.0)) >= SHOWN_MOVE
        ]
        found.append({"time": step.time, "ratings": step.ratings, "source": step.source, "moved": moved})
    return found[::-1]


SHOWN_MOVE = 0.001
