from __future__ import annotations

from typing import Any

import pytest

from coe_server.errors import RequestError
from coe_server.routing.conversation import Conversation, read_messages
from coe_server.routing.features import Turn


def test_only_the_last_turns_are_remembered() -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(10)]
    assert [turn.text for turn in read_messages(messages).turns] == ["6", "7", "8", "9"]
    assert [turn.weight for turn in read_messages(messages).turns] == [0.125, 0.25, 0.5, 1.0]


def test_every_turn_fills_the_context_and_so_does_the_answer() -> None:
    messages = [{"role": "system", "content": "x" * 400}, {"role": "user", "content": "y" * 40}]
    assert read_messages(messages, max_tokens=50).needed_tokens == 160


def test_an_image_is_noticed_and_its_text_is_read() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    conversation = read_messages([{"role": "user", "content": [picture, {"type": "text", "text": "what is it?"}]}])
    assert (conversation.has_images, conversation.turns) == (True, (Turn("what is it?"),))


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": None}], [{"role": "system", "content": "s"}]])
def test_without_a_user_turn_there_is_nothing_to_read(messages: list[dict[str, Any]]) -> None:
    assert read_messages(messages).turns == (Turn(""),)


@pytest.mark.parametrize("content", [5, {"text": "x"}, [["text"]], ["text", 5]])
def test_content_that_is_neither_text_nor_parts_is_refused(content: Any) -> None:
    with pytest.raises(RequestError, match=r"messages\[1\].content is neither text nor a list of parts"):
        read_messages([{"role": "user", "content": "x"}, {"role": "user", "content": content}])


def test_words_may_stand_among_the_parts_as_they_are() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    conversation = read_messages([{"role": "user", "content": ["what is it?", picture]}])
    assert (conversation.has_images, conversation.turns) == (True, (Turn("what is it?"),))


def test_an_image_without_its_type_is_noticed_and_a_type_that_is_none_harms_nobody() -> None:
    for part, is_image in (({"image_url": "https://x"}, True), ({"type": ["image_url"], "text": "x"}, False)):
        assert read_messages([{"role": "user", "content": [part]}]).has_images is is_image


def test_a_message_that_is_no_object_is_refused() -> None:
    with pytest.raises(RequestError, match=r"messages\[0\] is not an object"):
        read_messages(["hello"])  # type: ignore[list-item]  # what a careless caller may send


def test_a_prompt_that_stands_alone_is_one_turn() -> None:
    assert Conversation.of_prompt("abcd" * 10) == Conversation((Turn("abcd" * 10),), needed_tokens=10)
