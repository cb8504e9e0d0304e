"""Asks an expert questions greedily and counts the exactly right answers. Knows nothing of training."""

from math import sqrt

import torch
from questions import Question
from tiny_llama import chat_prompt
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BATCH = 100
LONGEST_ANSWER_TOKENS = 48


def exact_match(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: list[Question]) -> float:
    """The share of questions whose answer is the expected text, character for character."""
    given = answers(model, tokenizer, [question.prompt for question in asked])
    return sum(answer == question.answer for answer, question in zip(given, asked, strict=True)) / len(asked)


@torch.inference_mode()
def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """The greedy answer to each prompt."""
    texts = [chat_prompt(tokenizer, prompt) for prompt in prompts]
    given: list[str] = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            top_k=None,
            max_new_tokens=LONGEST_ANSWER_TOKENS,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        given += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return given


def wilson95(share: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of `count` questions."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)
