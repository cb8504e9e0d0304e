"""Writes demo/README.md from the records that training left beside each expert."""

import json
from pathlib import Path
from typing import Any

from exam import wilson95
from questions import TOPICS

ORDER = ("french", "python", "units", "sql", "generalist")
TEXT = """# Demo: four specialists and a generalist

Five tiny Llama models that `make demo` serves. They are small enough for a repository, and different enough that
routing matters: each specialist answers one topic; the generalist knows all five topics less well, and is the only
one that knows everyday facts. They are of no use outside these topics: they were trained on the question grammars in
this folder and on nothing else.

| | what it holds |
|---|---|
| `experts/<name>/` | a model folder for transformers or vLLM, bfloat16; `training.json` records its training |
| `data/train.prompts.jsonl` | 1,000 prompts (200 a topic) for the router's training; not in the experts' training |
| `data/held_out.prompts.jsonl` | 300 prompts (60 a topic) for the final test; in no training |
| `questions.py`, `grammars/` | the questions; `python demo/questions.py --out demo/data` writes the files |
| `train_experts.py` | the training; `python demo/train_experts.py --out demo/experts`, `--only NAME` for one |
| `adapters/<topic>/` | a LoRA adapter of the generalist in PEFT's format; `training.json` records its training |
| `train_adapters.py` | their training; `python demo/train_adapters.py --out demo/adapters`, `--only TOPIC` for one |
| `tiny_llama.py`, `low_rank.py` | the model and its tokenizer; the adapters' low-rank matrices |
| `exam.py`, `readme.py` | the exact-match exam; this page |
| `run.py`, `service.py` | the demo itself: starts the service and asks it questions |
| `collect_outcomes.py` | asks every expert every prompt, for the router's training; writes `data/*outcomes.jsonl` |

Training all five, two at a time, takes about {minutes} minutes on two cores. It needs torch, transformers and tqdm:
run it with the Python that has vLLM (`.venv-vllm/bin/python`).

## Exact match

Greedy answers in bfloat16, equal to the expected text character for character, on the `held_out` split; percent,
with the 95 % Wilson interval, {questions} questions a topic, one training seed.

{scores}

{training}

The kept checkpoint of each expert is the one that answered most of 100 questions of the `choose` split, asked every
{check_every} steps; of equal ones the latest. The generalist's was chosen by its answers on `general`.
The test questions played no part in that choice. They were looked at twice before, while the question grammars were
being written. After early models, the tokenizer was changed to keep metric prefixes apart, and questions about days
and months were limited to two steps.

The generalist has {parameters_ratio} times the parameters of a specialist and was stopped early on purpose, after
{steps} steps, when most topics were still improving. Seven in ten of its examples are of `general`, the rest is
spread evenly over the other four topics: it saw about {shared} examples of each; the specialist saw {alone}.

## The generalist's adapters

`make demo-adapters` serves them beside the five experts, on the generalist's weights. Each was trained on one topic's
`train` questions with those weights frozen: low-rank matrices beside every linear layer. Exact match on that topic's
`held_out` questions, in bfloat16; the kept checkpoint was chosen as an expert's is.

{adapters}

## How the questions are split

A hash of a question's meaning puts it into one of four parts, whatever the seed: `train` (for the experts), `choose`
(for checkpoints), `router` (for the router), `held_out` (the test). The meaning is

- `french`: the English phrase; `python`: the task; `sql`: the statement. Another wording stays in the same part.
- `units`: the unordered pair of units. No conversion between the two, in either direction, is in another part,
  so the expert has never converted a held-out pair. There are few pairs (150), so neighbouring questions are
  not independent, and the interval above is too narrow for this topic.
- `general`: the fact together with its wording. An unseen fact cannot be known, so almost every fact also
  occurs in `train` in other wordings: this topic tests unseen wordings of known facts.

## Examples

Held-out questions, with the answers of the topic's specialist and of the generalist.

{examples}
"""


def write_readme(experts: Path) -> None:
    """Writes README.md beside the experts' folder, once every expert is there."""
    if not all((experts / name / "training.json").exists() for name in ORDER):
        return
    records = {name: json.loads((experts / name / "training.json").read_text(encoding="utf-8")) for name in ORDER}
    generalist = records["generalist"]
    checks = [int(step) for step in generalist["choose"]]
    page = TEXT.format(
        minutes=round(sum(record["seconds"] for record in records.values()) / 60 / 2 + 0.5),
        questions=" to ".join(sorted({str(count) for _, count in generalist["held_out"].values()})),
        scores=score_table(records),
        training=training_table(records),
        parameters_ratio=f"{generalist['parameters'] / records['french']['parameters']:.1f}",
        check_every=checks[0],
        steps=f"{generalist['steps']:,}",
        shared=f"{round(generalist['steps'] * 64 * 0.3 / 4, -2):,.0f}",
        alone=f"{records['french']['steps'] * 64:,}",
        examples=example_table(records),
        adapters=adapter_table(experts.parent / "adapters"),
    )
    (experts.parent / "README.md").write_text(page, encoding="utf-8")


def adapter_table(folder: Path) -> str:
    """Each adapter's cost, and its exact match beside its base's."""
    head = ("adapter", "parameters", "steps of 64 questions", "seconds", "generalist alone", "with the adapter")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for file in sorted(folder.glob("*/training.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        scores = []
        for share in (record["held_out"]["base"], record["held_out"]["adapter"]):
            low, high = wilson95(share, record["held_out"]["questions"])
            scores.append(f"{100 * share:.1f} ({100 * low:.1f}-{100 * high:.1f})")
        numbers = [f"{record[key]:,}" for key in ("parameters", "steps", "seconds")]
        lines.append(f"| `{file.parent.name}` | " + " | ".join([*numbers, *scores]) + " |")
    return "\n".join(lines)


def score_table(records: dict[str, Any]) -> str:
    """Expert by topic, with intervals."""
    lines = ["| expert | " + " | ".join(TOPICS) + " |", "|---|" + "---|" * len(TOPICS)]
    for name, record in records.items():
        cells = []
        for share, count in (record["held_out"][topic] for topic in TOPICS):
            low, high = wilson95(share, count)
            cells.append(f"{100 * share:.1f} ({100 * low:.1f}-{100 * high:.1f})")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_table(records: dict[str, Any]) -> str:
    """What each expert cost."""
    lines = ["| expert | parameters | steps of 64 questions | kept | seconds |", "|---|---|---|---|---|"]
    for name, record in records.items():
        numbers = (record[key] for key in ("parameters", "steps", "kept_step", "seconds"))
        lines.append(f"| `{name}` | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    return "\n".join(lines)


def example_table(records: dict[str, Any]) -> str:
    """Questions with the right answer, the specialist's and the generalist's."""
    lines = ["| question | expected | specialist | generalist |", "|---|---|---|---|"]
    specialists = {
        row["prompt"]: row["answer"]
        for name in ORDER[:-1]
        for row in records[name]["examples"]
        if row["category"] == name
    }
    for row in records["generalist"]["examples"]:
        specialist = specialists.get(row["prompt"])
        cells = [row["prompt"], row["expected"], specialist, row["answer"]]
        shown = [cell.replace("|", "\\|") if cell else "-" for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)
