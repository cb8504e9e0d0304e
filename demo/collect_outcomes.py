"""Sends every prompt of the demo to every expert through the running service and records which answers are right.

    python demo/collect_outcomes.py

Writes demo/data/{train,held_out}.outcomes.jsonl, the same of adapters, and held_out.answers.jsonl; every answer is in
artifacts/demo-outcomes/outcomes.raw.jsonl.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from rich.console import Console
from run import ROOT, read_rows
from service import running_service

SPLITS = ("train", "held_out")
TOGETHER = ROOT / "artifacts/demo-outcomes/outcomes.jsonl"


def main() -> None:
    """Both splits in one collection, so that each expert is loaded once."""
    shutil.rmtree(TOGETHER.parent, ignore_errors=True)  # prompts with a recorded answer would not be sent again
    collect = [Path(sys.executable).with_name("coe-train"), "collect", ROOT / "configs/collect-demo.yaml"]
    prompts = [word for split in SPLITS for word in ("--prompts", ROOT / "demo/data" / f"{split}.prompts.jsonl")]
    with running_service(ROOT / "configs/demo.yaml", "--names-only", console=Console()) as service:
        subprocess.run([*collect, *prompts, "--out", TOGETHER, "--base-url", f"{service.url}/v1"], check=True)
    for split in SPLITS:
        write_outcomes_of(split)
    write_answers()


def write_outcomes_of(split: str) -> None:
    """The rows that belong to one split's prompts; those of adapters in a file of their own."""
    ids = {row["prompt_id"] for row in read_rows(f"{split}.prompts.jsonl")}
    adapters = adapter_names()
    rows = [(json.loads(line), line) for line in TOGETHER.read_text().splitlines(keepends=True)]
    for name, wanted in ((f"{split}.outcomes.jsonl", False), (f"{split}.adapters.outcomes.jsonl", True)):
        kept = [line for row, line in rows if row["prompt_id"] in ids and (row["expert"] in adapters) is wanted]
        (ROOT / "demo/data" / name).write_text("".join(kept))


def adapter_names() -> set[str]:
    """The demo's experts that are adapters of another one."""
    served = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())["experts"]
    return {expert["name"] for expert in served if expert["engine"] == "lora"}


def write_answers() -> None:
    """The texts of the held-out answers, which show what agreement says without right answers."""
    ids = [row["prompt_id"] for row in read_rows("held_out.prompts.jsonl")]
    recorded = (json.loads(line) for line in TOGETHER.with_name("outcomes.raw.jsonl").read_text().splitlines())
    texts = {(row["expert"], row["prompt_id"]): row["text"] for row in recorded if row["kind"] == "answer"}
    experts = [expert for expert in dict.fromkeys(expert for expert, _ in texts) if expert not in adapter_names()]
    rows = [{"prompt_id": name, "expert": expert, "text": texts[expert, name]} for expert in experts for name in ids]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (ROOT / "demo/data/held_out.answers.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
