from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coe_server.errors import RequestError
from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation, Sessions, read_messages, session_key
from coe_server.routing.decision import Availability, Kept, RouteOptions
from coe_server.routing.features import Turn
from coe_server.routing.router import Router
from coe_server.routing.tokens import TokenCount
from tests.routing.small_artifact import FOREIGN, TEXTS, everywhere, held_out, small_artifact


def test_only_the_last_turns_are_remembered() -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(10)]
    assert [turn.text for turn in read_messages(messages).turns] == ["6", "7", "8", "9"]
    assert [turn.weight for turn in read_messages(messages).turns] == [0.125, 0.25, 0.5, 1.0]


def test_every_turn_fills_the_context_and_so_does_the_answer() -> None:
    messages = [{"role": "system", "content": "one two " * 200}, {"role": "user", "content": "three " * 100}]
    conversation = read_messages(messages, max_tokens=50)
    assert conversation.prompt == TokenCount.of("one two " * 200 + "three " * 100)
    assert conversation.likely_tokens == conversation.prompt.likely + 50
    assert conversation.least_tokens == conversation.prompt.least > 300


def test_an_answer_may_be_cut_short_but_not_be_allowed_more_than_the_context() -> None:
    messages = [{"role": "user", "content": "three " * 100}]
    assert read_messages(messages, max_tokens=4000).least_tokens == 4000
    assert read_messages(messages, max_tokens=1).least_tokens == read_messages(messages).least_tokens


def test_an_image_is_noticed_and_its_text_is_read() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    conversation = read_messages([{"role": "user", "content": [picture, {"type": "text", "text": "what is it?"}]}])
    assert (conversation.modalities, conversation.turns) == ({"image"}, (Turn("what is it?"),))


BYTES = "QUFB" * 1000
BINARY = {"type": "base64", "media_type": "x/y", "data": BYTES}
PARTS: list[tuple[dict[str, Any], set[str]]] = [
    ({"type": "image_url", "image_url": {"url": BYTES}}, {"image"}),
    ({"type": "input_image", "image_url": BYTES}, {"image"}),
    ({"type": "image", "source": BINARY}, {"image"}),
    ({"type": "input_audio", "input_audio": {"data": BYTES, "format": "wav"}}, {"audio"}),
    ({"type": "audio_url", "audio_url": {"url": BYTES}}, {"audio"}),
    ({"type": "video_url", "video_url": {"url": BYTES}}, {"video"}),
    ({"type": "input_video", "input_video": {"data": BYTES}}, {"video"}),
    ({"type": "file", "file": {"file_data": BYTES, "filename": "a.pdf"}}, {"file"}),
    ({"type": "input_file", "file_data": BYTES}, {"file"}),
    ({"type": "document", "source": BINARY}, {"file"}),
    ({"type": "tool_result", "content": [{"type": "image", "source": BINARY}]}, {"image"}),
    ({"type": "tool_result", "content": [{"type": "document", "source": BINARY}, {"type": "text"}]}, {"file"}),
    ({"type": "document", "source": {"type": "content", "content": [{"type": "image"}]}}, {"file", "image"}),
    ({"audio_url": {"url": BYTES}}, {"audio"}),
    ({"type": None, "image_url": BYTES, "video_url": None}, {"image"}),
    ({"type": "text", "text": "", "image_url": BYTES}, set()),
    ({"type": ["image_url"]}, set()),
    ({"type": "thinking", "signature": BYTES}, set()),
]


@pytest.mark.parametrize(("part", "modalities"), PARTS)
def test_a_part_says_what_an_expert_must_take_and_its_bytes_are_no_text(
    part: dict[str, Any], modalities: set[str]
) -> None:
    conversation = read_messages([{"role": "user", "content": [part, {"type": "text", "text": "hello"}]}])
    assert conversation.modalities == modalities
    assert conversation.prompt == TokenCount.of("hello")


def test_all_that_stands_in_a_conversation_is_needed() -> None:
    said = [{"role": "user", "content": [part]} for part, _ in PARTS]
    assert read_messages(said).modalities == {"image", "audio", "video", "file"}
    shown = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": BYTES}}
    assert read_messages([{"role": "user", "content": "hi"}, shown]).modalities == {"image"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "one two three"}},
        {"type": "document", "source": {"type": "content", "content": "one two three"}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "one two three"}]}},
        {"type": "tool_result", "content": [{"type": "search_result", "content": [{"text": "one two three"}]}]},
        {"type": "refusal", "refusal": "one two three"},
        {"type": "tool_use", "input": {"file": "one two three"}},
    ],
)
def test_text_in_any_part_fills_the_context(part: dict[str, Any]) -> None:
    assert read_messages([{"role": "assistant", "content": [part]}]).prompt == TokenCount.of("one two three")


def test_an_image_that_is_written_into_a_text_is_text() -> None:
    text = f"what is ![this](data:image/png;base64,{BYTES})?"
    conversation = read_messages([{"role": "user", "content": text}])
    assert (conversation.modalities, conversation.prompt) == (set(), TokenCount.of(text))


def test_parts_that_are_nested_without_end_are_read_to_some_depth() -> None:
    part: dict[str, Any] = {"type": "image"}
    for _ in range(5_000):
        part = {"type": "tool_result", "content": [part]}
    assert read_messages([{"role": "user", "content": [part]}]).modalities == set()


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
    assert (conversation.modalities, conversation.turns) == ({"image"}, (Turn("what is it?"),))


def test_a_message_that_is_no_object_is_refused() -> None:
    with pytest.raises(RequestError, match=r"messages\[0\] is not an object"):
        read_messages(["hello"])  # type: ignore[list-item]  # what a careless caller may send


def test_a_prompt_that_stands_alone_is_one_turn() -> None:
    assert Conversation.of_prompt("abcd" * 10) == Conversation((Turn("abcd" * 10),), TokenCount.of("abcd" * 10))


OPTIONS = RouteOptions(objective="quality")


@pytest.fixture(scope="module")
def router(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    return Router.load(folder)


def said(*texts):
    """A conversation in which each of the user's turns but the last was answered."""
    messages = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "well"}]
    return read_messages(messages[:-1])


def decide(router, conversation, kept, **options):
    return router.route(conversation, replace(OPTIONS, kept=kept, **options), everywhere())


def test_a_conversation_stays_with_its_expert(router):
    fresh = router.route(said(TEXTS["french"]), OPTIONS, everywhere())
    assert (fresh.expert, fresh.reason) == ("linguist", "mapped")
    kept = Kept(fresh.expert, fresh.category)
    for more in ("thanks", FOREIGN, "commit it", TEXTS["french"]):
        decision = decide(router, said(TEXTS["french"], more), kept)
        assert (decision.expert, decision.reason) == ("linguist", "sticky"), more


def test_a_new_topic_is_decided_by_the_turn_that_brought_it(router):
    decision = decide(router, said(TEXTS["french"], TEXTS["maths"]), Kept("linguist", "french"))
    assert (decision.expert, decision.reason, decision.category) == ("big", "mapped", "maths")


def test_a_new_topic_in_a_named_session_is_seen_without_the_older_turns(router):
    kept = Kept("linguist", "french")
    assert decide(router, said(TEXTS["maths"]), kept, session="s").reason == "mapped"
    assert decide(router, said("thanks"), kept, session="s").reason == "sticky"


def test_a_new_topic_that_its_expert_knows_as_well_changes_nothing(router):
    """`coder` is at 0.80 for code where the best is at 0.82: not worth a move."""
    decision = decide(router, said(TEXTS["maths"], TEXTS["code"]), Kept("coder", "maths"))
    assert (decision.expert, decision.reason) == ("coder", "sticky")


def test_an_expert_that_cannot_take_the_request_is_left(router):
    conversation = said(TEXTS["french"], "thanks")
    assert decide(router, conversation, Kept("linguist", "french"), allow=frozenset({"big"})).expert == "big"
    gone = everywhere(linguist=Availability("disk", 1.0, "it failed"))
    options = replace(OPTIONS, kept=Kept("linguist", "french"))
    assert router.route(conversation, options, gone).reason != "sticky"
    assert decide(router, conversation, Kept("somebody of an older router", "french")).reason != "sticky"


def decision(router, **changes):
    return replace(router.route(said(TEXTS["french"]), OPTIONS, everywhere()), **changes)


def test_only_the_expert_that_answered_is_remembered_and_a_kept_expert_keeps_its_topic(router):
    sessions, key = Sessions(), b"k"
    continued = said("a", "b")
    for reason in ("requested", "fallback"):
        sessions.remember(key, decision(router, reason=reason))
        assert sessions.last(key, continued, OPTIONS) is None
    sessions.remember(key, decision(router))
    sessions.remember(key, decision(router, reason="sticky", category="general"))
    assert sessions.last(key, continued, OPTIONS) == Kept("linguist", "french")
    sessions.remember(key, decision(router, reason="fallback", expert="big"))
    assert sessions.last(key, continued, OPTIONS) == Kept("linguist", "french")


def test_a_first_turn_continues_no_conversation_unless_the_session_is_named(router):
    sessions = Sessions()
    sessions.remember(b"k", decision(router))
    assert sessions.last(b"k", said("hello"), OPTIONS) is None
    assert sessions.last(b"k", said("hello"), replace(OPTIONS, session="mine")) is not None
    assert sessions.last(None, said("a", "b"), OPTIONS) is None


def test_the_memory_is_bounded_and_drops_the_least_recently_used_conversation(router):
    sessions = Sessions(most=3)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        sessions.remember(name, decision(router))
    known = [name for name in (b"a", b"b", b"c", b"d") if sessions.last(name, said("x", "y"), OPTIONS)]
    assert (len(sessions), known) == (3, [b"a", b"c", b"d"])


def test_a_conversation_is_known_by_its_beginning_and_belongs_to_its_key():
    first, later = said("hello"), said("hello", "and now?", "go on")
    assert session_key(first, OPTIONS, None) == session_key(later, OPTIONS, None) is not None
    others = [
        session_key(first, OPTIONS, "anna"),
        session_key(first, OPTIONS, "ben"),
        session_key(first, replace(OPTIONS, objective="cheap"), None),
        session_key(first, replace(OPTIONS, session="hello"), None),
        session_key(first, replace(OPTIONS, session="hello"), "anna"),
        session_key(said("good day"), OPTIONS, None),
        session_key(first, OPTIONS, None),
    ]
    assert len(set(others)) == len(others)


def test_nothing_to_know_it_by_and_nothing_to_choose_have_no_key():
    assert session_key(read_messages([{"role": "system", "content": "s"}]), OPTIONS, None) is None
    assert session_key(said("hello"), replace(OPTIONS, expert="big"), None) is None
