"""The libraries people use, over every call they have for us; and that the comparison with a bare vLLM can fail."""

import openai
import pytest

from benchmarks.compatibility.cases import CASES, Side
from benchmarks.compatibility.comparing import differences, is_refusal, joined, refusal, settled
from tests.http.server import running_server
from tests.http.test_api import simulated


@pytest.fixture(scope="module")
def side():
    with running_server({name: simulated(name) for name in ("generalist", "embedder")}) as server:
        url = f"http://127.0.0.1:{server.port}"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            yield Side(url, "generalist", "embedder", client)


ANSWERED = [(group, name) for group, cases in CASES.items() if group != "chat, refused" for name in cases]


@pytest.mark.parametrize(("group", "name"), ANSWERED)
def test_a_library_reads_what_we_pass_on(side, group, name):
    answer = CASES[group][name](side)
    assert answer
    assert not is_refusal(answer)
    assert list(differences(settled(answer), settled(CASES[group][name](side)))) == []


def test_a_refusal_reaches_a_library_as_its_own_exception(side):
    with pytest.raises(openai.NotFoundError) as caught:
        side.openai.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "x"}])
    told = refusal(caught.value)
    assert (told["raised"], told["status"], told["body"]["code"]) == ("NotFoundError", 404, "model_not_found")
    assert is_refusal(told)


def test_what_is_no_refusal_compares_nothing():
    with pytest.raises(TypeError):
        refusal(TypeError("no such argument"))


@pytest.mark.parametrize(
    ("ours", "bare", "found"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"id": "chatcmpl-1"}, {"id": "chatcmpl-2"}, []),
        ({"id": "chatcmpl-1"}, {"id": None}, [".id: '...' with us, None bare"]),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, [".a[1].b: 2 with us, 3 bare"]),
        ({"a": 1}, {}, [".a only with us"]),
        ([1], [1, 2], [": [1] with us, [1, 2] bare"]),
        ({"text": "call_0123456789ab"}, {"text": "call_ba9876543210"}, []),
        ({"status": 400}, {"status": 401}, [".status: 400 with us, 401 bare"]),
    ],
)
def test_a_difference_is_found_and_named(ours, bare, found):
    assert list(differences(settled(ours), settled(bare))) == found


def event(content, index=0, end=None, role=None):
    ends = {"stop_reason": None} if end else {}
    delta = {"role": role, "content": content}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": end, **ends}]}


TOTAL = {"choices": [], "usage": {"total_tokens": 7}}
SAID = [event("", role="assistant"), event("good"), event(" day"), event("", end="stop"), TOTAL]


@pytest.mark.parametrize(
    "other",
    [
        [event("good", role="assistant"), event(" day", end="stop"), TOTAL],
        [event("", role="assistant"), event("good day"), event(None, end="stop"), TOTAL],
    ],
)
def test_how_many_tokens_share_an_event_is_no_difference(other):
    assert joined(SAID) == joined(other)


@pytest.mark.parametrize(
    "other",
    [
        [*SAID[:2], *SAID[3:]],  # a token is missing
        [*SAID[:3], TOTAL],  # no end
        SAID[:-1],  # no usage
        [SAID[0], SAID[2], SAID[1], *SAID[3:]],
        [event("good", 1) if one == SAID[1] else one for one in SAID],
    ],
)
def test_what_a_stream_says_is_one(other):
    assert list(differences(joined(SAID), joined(other)))


def test_the_order_of_choices_is_no_difference_and_their_own_order_is():
    one = [event("a", 0), event("b", 1), event("c", 0), event("d", 1)]
    assert joined(one) == joined([event("b", 1), event("d", 1), event("ac", 0)])
    assert joined(one) != joined([event("d", 1), event("b", 1), event("ac", 0)])
