"""The scripts of the guide turn results of other programs into data that training reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from router_training.data.dataset import Dataset, read_dataset
from tests.docs.reader import ROOT, blocks

EXPERTS = ("large", "small")


def made_by(folder: Path, script: str, *words: str) -> Dataset:
    """What training reads after the guide's script has run in `folder`."""
    (text,) = [one.text for one in blocks(ROOT / "docs/data-you-have.md") if one.text.startswith(f"# {script}\n")]
    (folder / script).write_text(text)
    subprocess.run([sys.executable, script, *words], cwd=folder, check=True)
    return read_dataset([folder / "prompts.jsonl"], [folder / "outcomes.jsonl"], EXPERTS)


def test_a_table_with_a_column_for_each_model(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(
        '\ufeffsample_id,prompt,eval_name,gpt-4,org/7b,org/7b|total_cost\r\nx.1,"a, b\nc",math,1.0,0.25,3\r\n'
        "x.2,d,code,0.0,,4\r\n",
        encoding="utf-8",
    )
    words = ("table.csv", "sample_id", "prompt", "eval_name", "large=gpt-4", "small=org/7b")
    dataset = made_by(tmp_path, "from_table.py", *words)
    assert dataset.prompt_ids == ("x.1", "x.2")
    assert dataset.conversations[0].turns[0].text == "a, b\nc"
    assert dataset.categories == ("code", "math")
    assert np.array_equal(dataset.scores, [[1.0, 0.25], [0.0, np.nan]], equal_nan=True)


@pytest.mark.parametrize("sent", [{"gen_args_0": {"arg_0": "2+2?", "arg_1": {}}}, [["2+2?", " 4"]]])
def test_samples_of_lm_evaluation_harness(tmp_path: Path, sent: object) -> None:
    """With two filters of each sample, and a task that one model did not run to the end."""
    for expert, score in (("large", 1.0), ("small", 0.0)):
        folder = tmp_path / expert / "org__model"
        folder.mkdir(parents=True)
        rows = [
            {"doc_id": number, "arguments": sent, "filter": kept, "exact_match": score if kept == "strict" else 0.5}
            for number in range(2 if expert == "large" else 1)
            for kept in ("strict", "flexible")
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples_gsm8k_cot_2026-01-02T03-04-05.678.jsonl").write_text(lines)
    dataset = made_by(tmp_path, "from_lm_eval.py", "exact_match", "large=large", "small=small")
    assert dataset.prompt_ids == ("gsm8k_cot-0", "gsm8k_cot-1")
    assert dataset.conversations[0].turns[0].text == "2+2?"
    assert dataset.categories == ("gsm8k_cot",)
    assert np.array_equal(dataset.scores, [[1.0, 0.0], [1.0, np.nan]], equal_nan=True)
