"""Trains the demo's experts on two cores: four specialists of one topic each and a generalist of all five.

`python demo/train_experts.py --out demo/experts` trains all, two at a time; `--only NAME` trains one.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from exam import answers, exact_match
from questions import TOPICS, Question, questions
from readme import write_readme
from tiny_llama import chat_prompt, load, new_model, new_tokenizer, save
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

SPECIALITIES = ("french", "python", "units", "sql")
BATCH, WARM_UP_STEPS, LEARNING_RATE = 64, 100, 3e-3
CHECK_EVERY_STEPS, CHECK_QUESTIONS, EXAM_QUESTIONS = 100, 100, 300
TRAINING_QUESTIONS = 20_000
FIRST_TOPIC_SHARE = 0.7  # of the generalist's examples, so that it stays weaker than each specialist


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one expert is made; its checkpoint is chosen by the first of its topics."""

    name: str
    topics: tuple[str, ...]
    hidden: int
    layers: int
    vocabulary: int
    steps: int


RECIPES = {
    name: Recipe(name, topics=(name,), hidden=128, layers=3, vocabulary=1024, steps=1000) for name in SPECIALITIES
} | {
    "generalist": Recipe(
        "generalist",
        topics=("general", *SPECIALITIES),
        hidden=192,
        layers=5,
        vocabulary=2048,
        steps=1000,  # few for five topics: most topics still improve when it ends
    )
}


def train_expert(recipe: Recipe, out: Path, seed: int, line: int = 0) -> None:
    """Trains one expert, keeps its best checkpoint on the `choose` split and examines it as saved."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    disable_progress_bar()  # of transformers: ours shows more
    lessons = {topic: questions(topic, "train", TRAINING_QUESTIONS, seed) for topic in recipe.topics}
    texts = [text for topic in recipe.topics for row in lessons[topic] for text in (row.prompt, row.answer)]
    tokenizer = new_tokenizer(texts, recipe.vocabulary)
    model = new_model(tokenizer, recipe.hidden, recipe.layers)
    started = time.monotonic()
    kept, checks = fit(model, tokenizer, recipe, lessons=lessons, seed=seed, line=line)
    seconds = time.monotonic() - started
    save(model, tokenizer, out / recipe.name)
    record = {
        "parameters": model.num_parameters(),
        "steps": recipe.steps,
        "kept_step": kept,
        "seconds": round(seconds),
        "choose": checks,
        **examination(out / recipe.name),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (out / recipe.name / "training.json").write_text(text + "\n", encoding="utf-8")


def fit(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    *,
    lessons: dict[str, list[Question]],
    seed: int,
    line: int,
) -> tuple[int, dict[int, dict[str, float]]]:
    """Trains and goes back to the best checkpoint; returns its step, and step -> topic -> exact match on `choose`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace(step, recipe.steps))
    drills = {topic: questions(topic, "choose", CHECK_QUESTIONS, seed) for topic in recipe.topics}
    checks: dict[int, dict[str, float]] = {}
    kept, kept_weights = 0, model.state_dict()
    with tqdm(total=recipe.steps, desc=f"{recipe.name:>10}", position=line, mininterval=2) as progress:
        for step, batch in zip(range(1, recipe.steps + 1), batches(tokenizer, lessons, seed), strict=False):
            loss = answer_loss(model, *batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update()
            if step % CHECK_EVERY_STEPS == 0 or step == recipe.steps:
                checks[step] = {topic: exact_match(model, tokenizer, drills[topic]) for topic in drills}
                progress.set_postfix(loss=f"{loss.item():.3f}", **checks[step])
                if step == best_step(checks, recipe.topics[0]):
                    kept, kept_weights = step, deepcopy(model.state_dict())
    model.load_state_dict(kept_weights)
    return kept, checks


def best_step(checks: dict[int, dict[str, float]], topic: str) -> int:
    """The step with the best exact match on this topic, the latest of equals."""
    return max(checks, key=lambda step: (checks[step][topic], step))


def pace(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to a fiftieth."""
    return min((step + 1) / WARM_UP_STEPS, max(1 - step / steps, 0.02))


def batches(
    tokenizer: PreTrainedTokenizerFast, lessons: dict[str, list[Question]], seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of token ids and labels, each of about one length."""
    rng = Random(seed)
    encoded = {topic: [encode(tokenizer, row) for row in rows] for topic, rows in lessons.items()}
    first, *others = encoded
    pool = 16 * BATCH
    while True:
        topics = [first if not others or rng.random() < FIRST_TOPIC_SHARE else rng.choice(others) for _ in range(pool)]
        rows = sorted((rng.choice(encoded[topic]) for topic in topics), key=lambda row: len(row[0]))
        starts = list(range(0, pool, BATCH))
        rng.shuffle(starts)
        for start in starts:
            yield padded(rows[start : start + BATCH])


def encode(tokenizer: PreTrainedTokenizerFast, row: Question) -> tuple[list[int], int]:
    """The token ids of prompt, answer and end, and how many belong to the prompt."""
    prompt = tokenizer.encode(chat_prompt(tokenizer, row.prompt))
    return prompt + tokenizer.encode(row.answer) + [tokenizer.eos_token_id], len(prompt)


def padded(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right (where causal attention never looks), and labels (-100 outside answers)."""
    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, (tokens, prompt_length) in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        labels[number, prompt_length : len(tokens)] = ids[number, prompt_length : len(tokens)]
    return ids, labels


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answers' tokens; only their positions are projected on the vocabulary."""
    states = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = labels[:, 1:]
    asked = wanted != -100
    return torch.nn.functional.cross_entropy(model.lm_head(states[asked]), wanted[asked])


def examination(folder: Path) -> dict[str, object]:
    """The saved expert's exact match on every topic's `held_out` split, and its answers to three questions each."""
    model, tokenizer = load(folder)
    exams = {topic: questions(topic, "held_out", EXAM_QUESTIONS) for topic in TOPICS}
    scores = {topic: [exact_match(model, tokenizer, exam), len(exam)] for topic, exam in exams.items()}
    shown = [question for exam in exams.values() for question in exam[:3]]
    given = answers(model, tokenizer, [question.prompt for question in shown])
    examples = [
        {"prompt": row.prompt, "category": row.category, "expected": row.answer, "answer": answer}
        for row, answer in zip(shown, given, strict=True)
    ]
    return {"held_out": scores, "examples": examples}


def main() -> None:
    """Reads the command line and trains two experts at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "experts")
    parser.add_argument("--only", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = [RECIPES[arguments.only]] if arguments.only else sorted(RECIPES.values(), key=lambda r: -r.hidden)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = [
            pool.submit(train_expert, recipe, arguments.out, arguments.seed, line) for line, recipe in enumerate(chosen)
        ]
        for run in runs:
            run.result()
    write_readme(arguments.out)


if __name__ == "__main__":
    main()
