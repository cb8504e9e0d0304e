"""`coe-train collect`: every prompt to every expert, every answer recorded and scored. The story of a collection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coe_server.errors import DatasetError
from coe_server.system.files import require_writable_folder
from router_training.collecting.bars import Bars
from router_training.collecting.collection import Collection, Step, prepare
from router_training.collecting.outcomes import refuse_unknown_format, write_outcomes
from router_training.collecting.patterns import PatternWorker
from router_training.collecting.settings import CollectConfig
from router_training.collecting.tally import Tally
from router_training.progress import Track


@dataclass(frozen=True, slots=True)
class Files:
    """`prompts` are read, `raw` grows with every answer and verdict, `out` is made from it."""

    prompts: tuple[Path, ...]
    out: Path
    raw: Path

    @classmethod
    def of(cls, prompts: Sequence[Path], out: Path, raw: Path | None) -> Files:
        """`raw` is outcomes.raw.jsonl beside outcomes.jsonl unless told otherwise."""
        return cls(tuple(prompts), out, raw or out.with_name(f"{out.stem}.raw.jsonl"))


def collect(config: CollectConfig, files: Files, bars: Bars, track: Track, *, rescore: bool = False) -> Tally:
    """Ask what has no answer yet, record it, score everything, write the outcomes.

    With `rescore` no expert is asked. Raises ConfigError or DatasetError before anything is sent.
    """
    _refuse_places(files)
    with PatternWorker() as worker:
        collection = prepare(config, files.prompts, files.raw, worker)
        if rescore and not len(collection.recording):
            raise DatasetError(f"{files.raw}: nothing is recorded there that could be scored")
        with collection.recording.open():
            asyncio.run(_ask(collection, bars, experts_too=not rescore))
            tally = collection.scored(track)
    if tally.outcomes:
        write_outcomes(files.out, tally.outcomes)
    return tally


def plan(config: CollectConfig, files: Files) -> list[Step]:
    """What `collect` would send, after the same checks; nothing is sent or written."""
    _refuse_places(files)
    with PatternWorker() as worker:
        return prepare(config, files.prompts, files.raw, worker).steps()


def _refuse_places(files: Files) -> None:
    """What is read must not be what is written, and what is written last must be a place that can be."""
    refuse_unknown_format(files.out)
    require_writable_folder("--out", files.out.parent)
    if files.out.is_dir():
        raise DatasetError(f"--out: {files.out} is a folder, where a file is due")
    used = [path.resolve() for path in (*files.prompts, files.out, files.raw)]
    for path in files.out, files.raw:
        if used.count(path.resolve()) > 1:
            raise DatasetError(f"{path}: the prompts, the outcomes and the raw answers need a file each")


async def _ask(collection: Collection, bars: Bars, experts_too: bool) -> None:
    """Expert by expert, so that each is loaded once; then the judge, who may be one of them."""
    if experts_too:
        bars.plan({step.target.name: step.to_send for step in collection.steps()})
        for target in collection.targets:
            await collection.ask_expert(target, bars)
    bars.plan({step.target.name: step.to_send for step in collection.judging()})
    await collection.ask_judge(bars)
