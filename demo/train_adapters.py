"""Trains the demo's two adapters of its generalist on two cores: low-rank matrices for one topic each.

`python demo/train_adapters.py --out demo/adapters` trains both at a time; `--only NAME` trains one.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from exam import exact_match
from low_rank import adapt, save_adapter, use_adapter
from questions import questions
from readme import write_readme
from tiny_llama import load
from train_experts import EXAM_QUESTIONS, TRAINING_QUESTIONS, Recipe, fit
from transformers.utils.logging import disable_progress_bar

BASE = "generalist"


@dataclass(frozen=True, slots=True)
class AdapterRecipe:
    """How one adapter is made: of which topic, how wide, for how long."""

    topic: str
    rank: int = 16
    alpha: int = 32
    steps: int = 600


RECIPES = {"sql": AdapterRecipe("sql"), "units": AdapterRecipe("units", steps=1200)}


def train_adapter(recipe: AdapterRecipe, experts: Path, out: Path, seed: int, line: int = 0) -> None:
    """Trains one adapter, keeps its best checkpoint on the `choose` split and examines it as saved."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    disable_progress_bar()  # of transformers: ours shows more
    model, tokenizer = load(experts / BASE)
    model.float().train()
    layers = adapt(model, recipe.rank, recipe.alpha)
    lessons = {recipe.topic: questions(recipe.topic, "train", TRAINING_QUESTIONS, seed)}
    plan = Recipe(f"{BASE}-{recipe.topic}", (recipe.topic,), 0, 0, 0, recipe.steps)
    started = time.monotonic()
    kept, checks = fit(model, tokenizer, plan, lessons=lessons, seed=seed, line=line)
    seconds = time.monotonic() - started
    folder = out / recipe.topic
    save_adapter(layers, folder, recipe.rank, recipe.alpha, BASE)
    record = {
        "base": BASE,
        "parameters": sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in layers.values()),
        "steps": recipe.steps,
        "kept_step": kept,
        "seconds": round(seconds),
        "choose": checks,
        "held_out": examination(recipe.topic, experts / BASE, folder),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def examination(topic: str, base: Path, folder: Path) -> dict[str, object]:
    """Exact match on the topic's `held_out` split, of the base alone and with the saved adapter, in bfloat16."""
    exam = questions(topic, "held_out", EXAM_QUESTIONS)
    model, tokenizer = load(base)
    alone = exact_match(model, tokenizer, exam)
    use_adapter(model, folder)
    return {"questions": len(exam), "base": alone, "adapter": exact_match(model.eval(), tokenizer, exam)}


def main() -> None:
    """Reads the command line and trains both adapters at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=Path, default=Path(__file__).parent / "experts")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "adapters")
    parser.add_argument("--only", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = [RECIPES[arguments.only]] if arguments.only else list(RECIPES.values())
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = [
            pool.submit(train_adapter, recipe, arguments.experts, arguments.out, arguments.seed, line)
            for line, recipe in enumerate(chosen)
        ]
        for run in runs:
            run.result()
    write_readme(arguments.experts)


if __name__ == "__main__":
    main()
