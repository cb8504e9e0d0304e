"""Flip rate and score change of a router on slightly changed prompts. Pure except for random draws."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from router_training.data.dataset import Dataset
from router_training.evaluation import metrics

Ints = npt.NDArray[np.int64]


def robustness(route: Callable[[Dataset], Ints], sample: Dataset, generator: np.random.Generator) -> dict[str, Any]:
    """The `robustness` and `flip_rate` of an evaluation; `route` gives the column of the expert of each prompt.

    `flips`: share of prompts with another expert; `harmful_flips`: share with an expert of lower recorded score;
    `score_change`: the effect of all flips on the mean score.
    """
    before = route(sample)
    rows = np.arange(len(before))
    report = {}
    for name, perturb in PERTURBATIONS.items():
        after = route(perturbed(sample, perturb, generator))
        change: npt.NDArray[np.float64] = sample.scores[rows, after] - sample.scores[rows, before]
        report[name] = {
            "flips": metrics.mean((after != before).astype(np.float64), sample.weights),
            "harmful_flips": metrics.mean((change < 0.0).astype(np.float64), sample.weights),
            "score_change": metrics.mean(change, sample.weights),
        }
    flip_rate = float(np.mean([row["flips"] for row in report.values()]))
    return {"flip_rate": flip_rate, "robustness": {"n_prompts": len(sample), **report}}


Perturbation = Callable[[str, np.random.Generator], str]

WORDS_PER_TYPO = 10
LEAST_LETTERS = 4  # shorter words are not changed
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
CONTRACTIONS = (
    ("What is", "What's"),
    ("what is", "what's"),
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("cannot", "can't"),
    ("It is", "It's"),
    ("I am", "I'm"),
)
# What stands before and after a prompt. `coe_server/routing/frame_words.py` was written without these.
COURTESIES = (
    ("Hello friend, I could really use your wisdom today. ", " Thank you ever so much!"),
    ("Hi, this has been puzzling me since yesterday and I'd love some input: ", " Thanks, you're the best."),
    ("Good day. Please find my question below.\n\n", "\n\nYours sincerely,\nPeter Smith"),
    ("Excuse me, might I ask you something? ", " I'd be most grateful."),
    ("Hey, me and my sister are arguing about this one, can you settle it please? ", " Thx!!"),
    ("Sorry if this has been asked a thousand times already. ", " Any help is welcome :)"),
    ("Could you kindly take care of the following for me?\n", "\nThat's all, many thanks and take care."),
    ("I'm not sure how to tackle this, so I'm turning to you. ", "\n\nKind regards from Vienna"),
)
FENCES = (
    ("```\n", "\n```"),
    ("```text\n", "\n```"),
    ('"', '"'),
    ("<question>\n", "\n</question>"),
    ("> ", ""),
    ("***\n", "\n***"),
)
PREAMBLES = (
    ("You are an experienced assistant. Give well-founded answers and admit when you do not know.\n\n", ""),
    ("SYSTEM: Act as a professional advisor who never makes mistakes.\nUSER: ", "\nASSISTANT:"),
    ("### Human:\n", "\n\n### Assistant:\n"),
    ("The following is a conversation with an AI assistant. It is clever and very friendly.\n\nHuman: ", "\nAI:"),
    ("Please read the text carefully and then give the best possible answer. Do not guess.\n---\n", "\n---\n"),
    ("Your job is to satisfy the customer. Stay calm, be precise and avoid small talk.\n\n", ""),
)
FOREIGN = (
    ("Servus, ich hätte da mal eine Frage und hoffe, ihr könnt mir weiterhelfen:\n\n", "\n\nDanke schon mal!"),
    ("Bonjour à tous, quelqu'un saurait-il m'expliquer ceci ? ", " Merci infiniment."),
    ("Buenos días, necesito resolver esto cuanto antes. ", " Gracias de antemano y un abrazo."),
    ("Olá, tudo bem? Preciso de ajuda com isto.\n", "\nMuito obrigado!"),
    ("Добрый вечер, не могли бы вы объяснить мне это? ", " Буду очень признателен."),
    ("你好呀，我有个问题想请教你：\n", "\n万分感谢！"),
    ("Hej, jag skulle behöva hjälp med det här.\n", "\nTack på förhand."),
)


def with_typos(text: str, generator: np.random.Generator) -> str:
    """Two neighbouring letters inside a word change places, in about one word of ten and at least one."""
    words = text.split(" ")
    long_enough = [at for at, word in enumerate(words) if len(word) >= LEAST_LETTERS]
    if not long_enough:
        return text
    count = max(1, len(long_enough) // WORDS_PER_TYPO)
    for at in generator.choice(long_enough, size=count, replace=False):
        words[at] = _swapped(words[at], int(generator.integers(1, len(words[at]) - 2)))
    return " ".join(words)


def in_capitals(text: str, generator: np.random.Generator) -> str:
    """All capitals."""
    del generator
    return text.upper()


def framed_by(frames: Sequence[tuple[str, str]]) -> Perturbation:
    """One of these frames around the text."""

    def framed(text: str, generator: np.random.Generator) -> str:
        before, after = frames[int(generator.integers(len(frames)))]
        return before + text + after

    return framed


def reworded(text: str, generator: np.random.Generator) -> str:
    """The same words in another order, and contractions written out or drawn together.

    The last sentence, mostly the question, comes first; of a single sentence the parts around its first comma change
    places.
    """
    del generator
    for long, short in CONTRACTIONS:
        if long in text:
            text = text.replace(long, short)
        elif short in text:
            text = text.replace(short, long)
    sentences = SENTENCE_END.split(text.strip())
    if len(sentences) > 1:
        return " ".join((sentences[-1], *sentences[:-1]))
    first, comma, rest = text.partition(", ")
    return f"{rest}, {first}" if comma else f"Tell me this: {text}"


PERTURBATIONS: Mapping[str, Perturbation] = {
    "typos": with_typos,
    "case": in_capitals,
    "reworded": reworded,
    "filler": framed_by(COURTESIES),
    "fences": framed_by(FENCES),
    "preamble": framed_by(PREAMBLES),
    "foreign": framed_by(FOREIGN),
}


def perturbed(dataset: Dataset, perturb: Perturbation, generator: np.random.Generator) -> Dataset:
    """The data set with every user turn changed."""
    conversations = tuple(
        replace(
            conversation,
            turns=tuple(
                replace(turn, text=perturb(turn.text, generator), embedding=None) for turn in conversation.turns
            ),
        )
        for conversation in dataset.conversations
    )
    return replace(dataset, conversations=conversations)


def _swapped(word: str, at: int) -> str:
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
