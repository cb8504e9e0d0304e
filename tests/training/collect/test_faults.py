"""Answers that are wrong for another reason than their content."""

import pytest

from router_training.collect.faults import fault_of, is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot assist with this request.",
        "Sorry, I can't do that.",
        "As an AI language model, I am unable to give legal advice.",
        "Es tut mir leid, dabei kann ich nicht helfen.",
        "Je suis désolé, je ne peux pas répondre.",
        "Lo siento, no puedo ayudar con eso.",
    ],
)
def test_a_usual_refusal_is_one(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't believe it: the answer is 4.",
        "Paris",
        "Sorry for the delay. The answer is 12.",
        "The model said: I'm sorry, but I can't help with that.",
        "I'm sorry, but I can't find a shorter proof, so here is the long one. " + "Step. " * 200,
        "",
    ],
)
def test_an_answer_is_none(text: str) -> None:
    assert not is_refusal(text)


def test_the_first_fault_counts() -> None:
    assert fault_of("length", "I'm sorry, but I can't help", parses=False) == "truncated"
    assert fault_of("content_filter", "", parses=False) == "refused"
    assert fault_of("stop", "I cannot help with this.", parses=False) == "refused"
    assert fault_of("stop", "no number", parses=False) == "unparsed"
    assert fault_of("stop", "12", parses=True) is None
