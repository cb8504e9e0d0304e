"""Sends every prompt of the demo to every expert through the running service and records which answers are right.

    python demo/collect_outcomes.py [--only EXPERT ...]

Writes demo/data/{train,held_out}.outcomes.jsonl, the same of adapters, and held_out.answers.jsonl; every answer is in
artifacts/demo-outcomes/outcomes.raw.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from rich.console import Console
from run import ROOT, read_rows, served_experts
from service import running_service

SPLITS = ("train", "held_out")
TOGETHER = ROOT / "artifacts/demo-outcomes/outcomes.jsonl"
SERVED, COLLECT = ROOT / "configs/demo-adapters.yaml", ROOT / "configs/collect-demo.yaml"


def main() -> None:
    """Both splits in one collection, so that each expert is loaded once. Other experts' rows stay as they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=(names := served_experts(SERVED)), default=names, metavar="EXPERT")
    asked = parser.parse_args().only
    shutil.rmtree(TOGETHER.parent, ignore_errors=True)  # prompts with a recorded answer would not be sent again
    TOGETHER.parent.mkdir(parents=True)
    settings = yaml.safe_load(COLLECT.read_text())
    settings["experts"] = [expert for expert in settings["experts"] if expert["name"] in asked]
    (config := TOGETHER.with_name("collect.yaml")).write_text(yaml.safe_dump(settings))
    collect = [Path(sys.executable).with_name("coe-train"), "collect", config]
    prompts = [word for split in SPLITS for word in ("--prompts", ROOT / "demo/data" / f"{split}.prompts.jsonl")]
    with running_service(SERVED, "--names-only", console=Console()) as service:
        subprocess.run([*collect, *prompts, "--out", TOGETHER, "--base-url", f"{service.url}/v1"], check=True)
    for split in SPLITS:
        write_outcomes_of(split)
    write_answers(asked)


def write_outcomes_of(split: str) -> None:
    """The rows that belong to one split's prompts; those of adapters in a file of their own."""
    ids = {row["prompt_id"] for row in read_rows(f"{split}.prompts.jsonl")}
    adapters, recorded = adapter_names(), lines_by_expert(TOGETHER)
    for name, wanted in ((f"{split}.outcomes.jsonl", False), (f"{split}.adapters.outcomes.jsonl", True)):
        file = ROOT / "demo/data" / name
        before = lines_by_expert(file) if file.exists() else {}
        experts = [one for one in served_experts(SERVED) if (one in adapters) is wanted]
        kept = [
            line for expert in experts for row, line in (recorded.get(expert) or before.get(expert, ())) if row in ids
        ]
        file.write_text("".join(kept))


def lines_by_expert(file: Path) -> dict[str, list[tuple[str, str]]]:
    """The identifier of each row's prompt and its line, by expert."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in file.read_text().splitlines(keepends=True):
        row = json.loads(line)
        found.setdefault(row["expert"], []).append((row["prompt_id"], line))
    return found


def adapter_names() -> set[str]:
    """The demo's experts that are adapters of another one."""
    served = yaml.safe_load(SERVED.read_text())["experts"]
    return {expert["name"] for expert in served if expert["engine"] == "lora"}


def write_answers(asked: list[str]) -> None:
    """The texts of the held-out answers, which show what agreement says without right answers. None of adapters."""
    file, adapters = ROOT / "demo/data/held_out.answers.jsonl", adapter_names()
    ids = [row["prompt_id"] for row in read_rows("held_out.prompts.jsonl")]
    recorded = (json.loads(line) for line in TOGETHER.with_name("outcomes.raw.jsonl").read_text().splitlines())
    texts = {(row["expert"], row["prompt_id"]): row["text"] for row in recorded if row["kind"] == "answer"}
    before = lines_by_expert(file) if set(asked) < set(served_experts(SERVED)) else {}
    lines = []
    for expert in (one for one in served_experts(SERVED) if one not in adapters):
        rows = [{"prompt_id": name, "expert": expert, "text": texts[expert, name]} for name in ids if expert in asked]
        lines += [json.dumps(row, ensure_ascii=False) + "\n" for row in rows] or [line for _, line in before[expert]]
    file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
