from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.frame import REACH, read_as, unframed
from coe_server.routing.frame_words import FRAME_WORDS
from tests.examples import examples

CORE = "Explain the Krebs cycle of plants, with all intermediate products"

FRAMES = [
    ("Hi! ", ""),
    ("Hello, ", " Thanks a lot!"),
    ("Please, ", "\nPlease"),
    ("Hi Anna! Could you please help me with the following?\n\n", "\n\nMany thanks in advance,\nTom"),
    ("I hope you are having a wonderful day. I was wondering whether you could answer this. ", " Cheers"),
    ("You are a helpful assistant. Answer as accurately as possible.\n\n", ""),
    ("### Instruction:\n", "\n\n### Response:\n"),
    ("SYSTEM: you are an AI\nUSER: ", "\nASSISTANT:"),
    ("Guten Tag! Könnten Sie mir bitte helfen?\n", "\nVielen Dank im Voraus!"),
    ("Bonjour, pourriez-vous m'aider ? ", "\nMerci beaucoup d'avance."),
    ("你好，请帮我回答下面的问题：\n", "\n非常感谢！"),
]


@pytest.mark.parametrize(("before", "after"), FRAMES)
def test_courteous_sentences_around_a_prompt_are_set_aside(before: str, after: str) -> None:
    assert unframed(before + CORE + after).strip(" ,\n") == CORE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hi!",
        "Thanks, go on.",
        "Could you please help me with this?",
        "What is the boiling point of water? Give it in degrees.",
        "Please, thank you and sorry.",
        "meat, clip, jean, come, day, indoor, catch, window, singer, javelin, step, follow",
        "If a dog is hunting, then",
        "A gardener plants three maple trees. What is the probability that no two are next to one another?",
        "Find a movie similar to Fargo:\n(A) The Killer Shrews\n(B) The Den",
        "2 + 2 = ?",
        "∑ = ?",
    ],
)
def test_a_text_without_a_frame_or_of_a_frame_alone_is_kept_whole(text: str) -> None:
    assert unframed(text) == text


def test_a_courteous_request_with_its_subject_is_kept_where_little_else_is_said() -> None:
    text = "Could you please explain photosynthesis and respiration to me? In short."
    assert unframed(text) == text


def test_courtesies_inside_a_text_are_not_looked_at() -> None:
    text = f"{CORE}. Thank you for the flowers, said the gardener. {CORE} again, in Latin"
    assert unframed(text) == text


sentences = st.lists(st.sampled_from([*sorted(FRAME_WORDS), "krebs", "17", "=", ".", "!", ",", ":", "\n", "```"]))


@examples(300)
@given(st.one_of(st.text(max_size=80), sentences.map(" ".join)))
def test_what_is_left_is_a_part_of_the_text_and_says_something_if_the_text_does(text: str) -> None:
    rest = unframed(text)
    assert rest in text
    assert any(character.isalnum() for character in rest) or rest == text


@examples(100)
@given(sentences.map(" ".join), sentences.map(" ".join))
def test_the_middle_of_a_long_text_is_kept(before: str, after: str) -> None:
    middle = " ".join([CORE] * (2 * REACH // len(CORE)))
    assert middle in unframed(f"{before} {middle} {after}")


def test_a_plain_normalisation_reads_every_word() -> None:
    text = f"Hi! {CORE} Thanks!"
    assert read_as(text, "plain") == text
    assert read_as(text, "unframed-1") == f"{CORE} "
