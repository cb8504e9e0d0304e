"""A wrong model name is told the nearest one."""

import pytest

from coe_server.http.model_names import unknown_model

KNOWN = ("auto", "auto:cheap", "coder", "Qwen3-8B", "expert-05")


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("Coder", "coder"),
        ("codr", "coder"),
        ("coder:latest", "coder"),
        ("openai/auto", "auto"),
        ("someone/qwen3-8b", "Qwen3-8B"),
        ("auto:cheep", "auto:cheap"),
        ("expert-5", "expert-05"),
    ],
)
def test_the_name_that_was_probably_meant_is_told(model, meant):
    assert str(unknown_model(model, KNOWN)).endswith(f"Qwen3-8B, expert-05; did you mean '{meant}'?")


@pytest.mark.parametrize("model", ["", "gpt-4o", "linguist", "/", ":", "coder" * 1000])
def test_a_name_that_is_like_none_is_told_all_of_them(model):
    told = "known: auto, auto:cheap, coder, Qwen3-8B, expert-05"
    assert str(unknown_model(model, KNOWN)) == f"unknown model '{model}'; {told}"
