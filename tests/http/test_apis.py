"""What routing reads of each kind of body: the user's words, the size, the abilities needed. No server."""

import pytest

from coe_server.errors import RequestError
from coe_server.http.apis import APIS, api_of, read_anthropic, read_chat, read_completion, read_response
from coe_server.routing.conversation import ENDPOINTS, without_reminders
from coe_server.routing.tokens import TokenCount

USER = {"role": "user", "content": "what is a prime?"}


SYSTEM = "be brief, and say what you know " * 10
SAID = "it is six degrees. " * 10


def texts(conversation):
    return [turn.text for turn in conversation.turns]


def tokens(*said):
    return TokenCount.of("".join(said))


def test_a_chat_request_is_read_for_its_user_turns():
    conversation = read_chat(
        {"messages": [{"role": "system", "content": SYSTEM}, USER], "max_tokens": 7, "tools": [{}]}
    )
    assert texts(conversation) == ["what is a prime?"]
    assert (conversation.prompt, conversation.answer_tokens) == (tokens(SYSTEM, USER["content"]), 7)
    assert (conversation.has_tools, conversation.continues) == (True, False)


def test_a_tools_output_is_not_the_users_words_but_fills_the_context():
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": SYSTEM},
    ]
    conversation = read_chat({"messages": messages})
    assert texts(conversation) == ["what is a prime?"]
    assert conversation.prompt == tokens(USER["content"], SYSTEM)
    assert conversation.continues


def test_a_reminder_in_a_users_turn_is_not_the_users_words():
    text = "<system-reminder>use python\n</system-reminder>what is a prime?<system-reminder>never closed python"
    assert texts(read_chat({"messages": [{"role": "user", "content": text}]})) == ["what is a prime?"]
    assert without_reminders("a </system-reminder> b") == "a </system-reminder> b"


def test_a_turn_of_reminders_alone_is_no_turn():
    reminder = {"role": "user", "content": "<system-reminder>x</system-reminder>"}
    assert texts(read_chat({"messages": [USER, reminder]})) == ["what is a prime?"]


@pytest.mark.parametrize(
    ("prompt", "text", "count"),
    [
        (SYSTEM, SYSTEM, tokens(SYSTEM)),
        (["ab", SYSTEM], "ab\n" + SYSTEM, tokens(SYSTEM)),
        ([1, 2, 3], "", TokenCount(3, 3)),
        ([[1, 2], [3, 4, 5, 6]], "", TokenCount(4, 4)),
    ],
)
def test_a_completion_may_be_text_or_tokens_or_several(prompt, text, count):
    conversation = read_completion({"prompt": prompt, "max_tokens": 5})
    assert (texts(conversation), conversation.prompt, conversation.answer_tokens) == ([text], count, 5)


def test_a_response_request_may_be_text_or_items():
    assert texts(read_response({"input": "hi", "instructions": SYSTEM})) == ["hi"]
    assert read_response({"input": "hi", "instructions": SYSTEM}).prompt == tokens(SYSTEM, "hi")
    items = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": "x"}],
        },
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "output": "42"},
    ]
    conversation = read_response({"input": items})
    assert (texts(conversation), conversation.modalities) == (["look"], {"image"})
    assert conversation.continues, "its expert has called a tool"
    assert not read_response({"input": items[:1]}).continues


def test_anthropics_messages_are_read_without_system_and_tool_results():
    result = {"type": "tool_result", "content": [{"type": "text", "text": SAID}, {"type": "image", "source": {}}]}
    fields = {
        "system": [{"type": "text", "text": SYSTEM}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "bonjour"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]},
            {"role": "user", "content": [result]},
        ],
        "max_tokens": 9,
    }
    conversation = read_anthropic(fields)
    assert texts(conversation) == ["bonjour"]
    assert conversation.modalities == {"image"}
    assert (conversation.prompt, conversation.answer_tokens) == (tokens(SYSTEM, "bonjour", SAID), 9)
    assert read_anthropic({"system": SYSTEM, "messages": [USER]}).prompt == tokens(SYSTEM, USER["content"])


CALLED = "compile this file and run it " * 20
OUTPUT = [{"type": "input_text", "text": SAID}, {"type": "input_image", "image_url": "x" * 400}]


@pytest.mark.parametrize(
    ("read", "name", "calls"),
    [
        (read_chat, "messages", [{"role": "assistant", "tool_calls": [{"function": {"arguments": CALLED}}]}]),
        (
            read_response,
            "input",
            [{"type": "function_call", "arguments": CALLED}, {"type": "function_call_output", "output": OUTPUT}],
        ),
        (
            read_anthropic,
            "messages",
            [{"role": "assistant", "content": [{"type": "tool_use", "input": {"file": CALLED, "line": 3}}]}],
        ),
    ],
)
def test_what_tools_are_called_with_fills_the_context_in_every_api(read, name, calls):
    conversation = read({name: [USER, *calls], "max_tokens": 7, "max_output_tokens": 7})
    has_output = OUTPUT in [one.get("output") for one in calls]
    assert texts(conversation) == ["what is a prime?"]
    assert conversation.prompt == tokens(USER["content"], CALLED, SAID if has_output else "")
    assert conversation.answer_tokens == 7
    assert conversation.continues
    assert conversation.modalities == ({"image"} if has_output else set())


@pytest.mark.parametrize(
    "odd", [{"tool_calls": [5]}, {"tool_calls": 5}, {"tool_calls": [{"function": 5}]}, {"output": [5]}]
)
def test_calls_that_are_none_are_left_to_the_engine(odd):
    assert read_chat({"messages": [USER, {"role": "assistant", **odd}]}).prompt == tokens(USER["content"])


@pytest.mark.parametrize(
    ("read", "fields", "param"),
    [
        (read_chat, {}, "messages"),
        (read_chat, {"messages": {}}, "messages"),
        (read_chat, {"messages": [{"role": "user", "content": 5}]}, "messages"),
        (read_completion, {}, "prompt"),
        (read_completion, {"prompt": []}, "prompt"),
        (read_completion, {"prompt": [1, "a"]}, "prompt"),
        (read_completion, {"prompt": [True]}, "prompt"),
        (read_response, {"input": []}, "input"),
        (read_response, {"input": 5}, "input"),
        (read_anthropic, {"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(read, fields, param):
    with pytest.raises(RequestError) as caught:
        read(fields)
    assert caught.value.param == param


@pytest.mark.parametrize("odd", [{"max_tokens": "7"}, {"max_tokens": -1}, {"tools": 3}, {"system": 5}, {"system": [5]}])
def test_a_field_that_only_the_engine_understands_is_left_to_the_engine(odd):
    assert texts(read_anthropic({"messages": [USER], **odd})) == ["what is a prime?"]


def test_every_endpoint_has_an_api_and_a_dry_run_finds_its_own():
    assert {api.endpoint for api in APIS} == set(ENDPOINTS)
    assert api_of({"prompt": "x"}).endpoint == "completions"
    assert api_of({"input": "x"}).endpoint == "responses"
    assert api_of({"messages": []}).endpoint == "chat"
