"""An expert whose first tokens are unsure hands over before a byte of its answer is sent."""

import json
import re
import threading
from types import SimpleNamespace

import pytest

from coe_server.cache.policy import Limits
from coe_server.engines.simulated_answers import SURE, UNSURE
from coe_server.errors import EngineDied
from coe_server.routing import artifact as artifacts
from coe_server.routing.certainty import WHOLE
from coe_server.routing.handover import HandoverTerms
from coe_server.routing.manifest import CurveEntry, HandoverEntry
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import Breaking, simulated
from tests.http.test_failure import DONE, EVENTS, FOREVER, Says, decisions, open_stream
from tests.patience import PATIENCE_SECONDS, until
from tests.routing.small_artifact import BEST, SIZES, TEXTS, held_out, objective, small_artifact

WORDS = TEXTS["french"]  # linguist is best, then big, then coder
CURVES = [
    CurveEntry(tokens=tokens, intercept=-3.0, certainty=1.5, score=0.0, alone_intercept=-3.0, alone_certainty=1.5)
    for tokens in (4, WHOLE)
]
EARNED = HandoverEntry(tokens=4, margin=0.05, share=0.2, gain=0.1, gain_ci95=(0.05, 0.15), shipped=True)
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


def routed(folder, terms, handover=EARNED, **changes):
    objectives = {"quality": objective(BEST, handover=handover)}
    certainty = dict.fromkeys(SIZES, CURVES)
    artifacts.save(small_artifact(objectives=objectives, certainty=certainty, **changes), held_out(), None, folder)
    return Router.load(folder, handover=terms)


@pytest.fixture
def router(tmp_path):
    return routed(tmp_path / "router", HandoverTerms())


def ask(server, text, path="chat", headers=None, **fields):
    said = {"messages": [{"role": "user", "content": text}]} if path == "chat" else {"prompt": text}
    return server.ask("POST", PATHS[path], json.dumps({"model": "auto", **said, **fields}), headers)


def experts(**first):
    return {name: Breaking(name, first.get(name, [])) for name in SIZES}


def token(text, logprob):
    told = {"content": [{"token": text, "logprob": logprob, "bytes": [], "top_logprobs": []}]}
    choice = {"index": 0, "delta": {"content": text}, "logprobs": told, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def metric(server, line):
    _, _, raw = server.ask("GET", "/metrics")
    return next((float(one.rpartition(" ")[2]) for one in raw.decode().splitlines() if one.startswith(line)), 0.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_unsure_expert_hands_over_and_a_sure_one_answers(router, path, stream):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        status, headers, raw = ask(server, WORDS, path, stream=stream)
        assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "big", "handed_over")
        assert headers["x-coe-handed-over-from"] == "linguist"
        assert float(headers["x-coe-handed-over-certainty"]) < 0.05
        assert b"linguist" not in raw
        status, headers, raw = ask(server, f"{WORDS} linguist", path, stream=stream)
        assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "linguist", "mapped")
        assert float(headers["x-coe-certainty"]) > 0.9
        assert "x-coe-handed-over-from" not in headers
        assert metric(server, 'coe_handovers_total{from="linguist",to="big"}') == 1
        assert metric(server, 'coe_held_seconds_count{expert="linguist"}') == 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_judged_answer_has_the_bytes_of_one_that_was_not_judged(router, path, stream):
    fields = {"stream": stream, "stream_options": {"include_usage": True}} if stream else {}
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        _, judged_headers, judged = ask(server, f"{WORDS} linguist", path, **fields)
        _, headers, plain = ask(server, f"{WORDS} linguist", path, model="linguist", **fields)
    assert "x-coe-certainty" in judged_headers
    assert "x-coe-certainty" not in headers
    assert without_moment(judged) == without_moment(plain)
    assert judged_headers.get("content-length") == headers.get("content-length")


def without_moment(raw):
    return [part for part in raw.split(b", ") if not part.startswith(b'"created"')]


def unsure(*rest, words=4):
    """A streamed answer of unsure words."""
    return Says(200, *[token(f"mot{place}", UNSURE) for place in range(words)], *rest, headers=EVENTS)


class Gate(threading.Event):
    """Of a script: `reached` is set when the script waits for it."""

    def __init__(self):
        super().__init__()
        self.reached = threading.Event()

    def wait(self, timeout=None):
        self.reached.set()
        return super().wait(timeout)


def leases(server):
    return {one.name: one.leases for one in server.cache.status()}


def test_no_byte_is_sent_before_the_tokens_are_judged_and_the_first_engine_is_left_at_once(router):
    goes_on = Gate()
    held = Says(200, *[token("mot", UNSURE)] * 3, goes_on, token("mot", UNSURE), FOREVER, headers=EVENTS)
    with running_server(experts(linguist=[held]), router=router) as server, open_stream(server) as client:
        assert goes_on.reached.wait(PATIENCE_SECONDS)
        client.wire.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.wire.recv(1)
        client.wire.settimeout(PATIENCE_SECONDS)
        goes_on.set()
        client.read_until(b"[DONE]")
        assert held.closed.is_set()
        assert b"mot" not in client.raw
        until(lambda: not any(leases(server).values()))


def test_an_answer_that_ends_early_is_judged_by_what_there_is(router):
    ended = b'data: {"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    with running_server(experts(linguist=[unsure(ended, DONE, words=2)]), router=router) as server:
        _, headers, _ = ask(server, WORDS, stream=True)
        assert headers["x-coe-expert"] == "big"


def test_an_engine_that_dies_while_its_tokens_are_held_is_replaced_as_before_a_first_word(router):
    core_died = b'data: {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}\n\n'
    for ends in ((EngineDied("x"),), (core_died, DONE)):
        with running_server(experts(linguist=[unsure(*ends, words=2)]), router=router) as server:
            _, headers, raw = ask(server, WORDS, stream=True)
            assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("big", "fallback")
            assert b"mot" not in raw


def test_a_client_that_leaves_while_tokens_are_held_leaves_no_lease(router):
    held = unsure(FOREVER, words=2)
    with running_server(experts(linguist=[held]), router=router) as server:
        with open_stream(server):
            until(lambda: leases(server)["linguist"] == 1)
        until(lambda: not any(leases(server).values()))
        assert held.closed.is_set()
        assert metric(server, "coe_handovers_total") == 0


def test_the_deadline_passes_while_tokens_are_held(router):
    with running_server(experts(linguist=[unsure(FOREVER, words=2)]), router=router) as server:
        status, _, raw = ask(server, WORDS, headers={"x-request-timeout": "0.3"})
        assert (status, json.loads(raw)["error"]["code"]) == (504, "deadline_exceeded")
        assert not any(leases(server).values())


def test_keep_alives_go_out_while_tokens_are_held(router):
    goes_on = threading.Event()
    held = Says(200, token("mot", UNSURE), goes_on, *[token("mot", UNSURE)] * 3, headers=EVENTS)
    with (
        running_server(experts(linguist=[held]), router=router, keepalive_seconds=0.05) as server,
        open_stream(server) as client,
    ):
        client.read_until(b": coe waiting expert=linguist")
        goes_on.set()
        client.read_until(b"[DONE]")
        assert b": coe answering expert=big reason=handed_over" in client.raw


def test_if_the_second_expert_fails_the_first_one_is_asked_again_and_its_answer_goes_out(router):
    refuses = Says(500, b'{"error": {"message": "oops", "code": 500}}')
    limits = Limits(death_notice_seconds=0)
    with running_server(experts(big=[refuses]), router=router, limits=limits) as server:
        _, headers, raw = ask(server, WORDS, stream=True)
        assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("coder", "fallback")
    with running_server(experts(big=[refuses], coder=[refuses]), router=router, limits=limits) as server:
        _, headers, raw = ask(server, WORDS, stream=True)
        assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("linguist", "fallback")
        assert b'"content": "linguist"' in raw


def test_an_answer_is_not_given_up_for_an_expert_that_is_full(router):
    busy = Says(200, token("mot", SURE), FOREVER, headers=EVENTS)
    limits = Limits(queue_limit=1, max_concurrency=1)
    with (
        running_server(experts(big=[busy]), router=router, limits=limits) as server,
        open_stream(server, model="big") as first,
    ):
        first.read_until(b"mot")
        with open_stream(server, model="big"):
            until(lambda: {one.name: one.queued for one in server.cache.status()}["big"] == 1)
            status, headers, _ = ask(server, WORDS, stream=True)
            assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "linguist", "mapped")
            assert float(headers["x-coe-certainty"]) < 0.05  # the third is on disk: its wait costs more than it gains


def test_a_conversation_stays_with_the_expert_that_took_over(router):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        first = [{"role": "user", "content": WORDS}]
        _, headers, raw = server.ask("POST", PATHS["chat"], json.dumps({"messages": first}))
        assert headers["x-coe-reason"] == "handed_over"
        later = [*first, json.loads(raw)["choices"][0]["message"], {"role": "user", "content": "merci"}]
        _, headers, _ = server.ask("POST", PATHS["chat"], json.dumps({"messages": later}))
        assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("big", "sticky")


def test_a_caller_that_asks_for_log_probabilities_gets_them_and_the_answer_is_judged(router):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        _, headers, raw = ask(server, f"{WORDS} linguist", logprobs=True)
        assert json.loads(raw)["choices"][0]["logprobs"]["content"][0]["logprob"] == SURE
        assert "x-coe-certainty" in headers
        _, headers, raw = ask(server, WORDS, logprobs=True, stream=True)
        assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("big", "handed_over")
        assert raw.count(b'"logprob": ') == len(f"big answers: {WORDS}".split())


NOT_JUDGED = {
    "a named expert": {"model": "linguist"},
    "several answers": {"n": 2},
    "a forced tool": {"tool_choice": "required"},
    "a named tool": {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    "JSON": {"response_format": {"type": "json_object"}},
    "a grammar": {"guided_regex": "a+"},
    "structured outputs": {"structured_outputs": {"choice": ["a"]}},
    "what an engine refuses": {"top_logprobs": 2},
}


@pytest.mark.parametrize("fields", NOT_JUDGED.values(), ids=NOT_JUDGED.keys())
def test_an_answer_that_follows_a_grammar_or_a_name_is_not_judged(router, fields):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        _, headers, _ = ask(server, WORDS, **fields)
        assert headers["x-coe-expert"] == "linguist"
        assert "x-coe-certainty" not in headers
        assert metric(server, "coe_held_seconds_count") == 0


OTHER_APIS = {
    "/v1/messages": {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 20},
    "/v1/responses": {"input": WORDS},
}


@pytest.mark.parametrize("path", OTHER_APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_the_other_apis_answer_as_by_a_router_without_handover(router, tmp_path, path, stream):
    def answer(team, one):
        with running_server(team, router=one) as server:
            asked = json.dumps({"model": "auto", "stream": stream, **OTHER_APIS[path]})
            found = server.ask("POST", path, asked)
            return *found, metric(server, "coe_held_seconds_count")

    team = {name: Hearing(name) for name in SIZES}
    status, headers, raw, judged_count = answer(team, router)
    assert (status, headers["x-coe-expert"], headers["x-coe-reason"], judged_count) == (200, "linguist", "mapped", 0)
    assert "x-coe-certainty" not in headers
    (heard,) = team["linguist"].heard
    assert b"logprobs" not in heard
    _, plain_headers, plain, _ = answer({name: simulated(name) for name in SIZES}, routed(tmp_path / "plain", None))
    assert without_ids(raw) == without_ids(plain)
    assert set(headers) == set(plain_headers)


class Hearing(Breaking):
    """Keeps the bodies that it is sent."""

    def __init__(self, name):
        super().__init__(name, [])
        self.heard = []

    def send(self, request):
        self.heard.append(request.whole_body)
        return super().send(request)


def without_ids(raw):
    """Without times and ids."""
    return re.sub(rb"[0-9a-f]{6,}", b"", raw)


def test_values_that_force_nothing_are_no_reason_not_to_judge(router):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        fields = {"tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": False, "guided_json": None}
        _, headers, raw = ask(server, WORDS, **fields)
        assert headers["x-coe-reason"] == "handed_over"
        assert json.loads(raw)["choices"][0]["logprobs"] is None


REFUSES = Says(400, b'{"error": {"message": "logprobs is not supported", "code": 400}}')


def test_an_engine_that_refuses_log_probabilities_is_asked_without_them_and_remembered(router):
    team = experts(linguist=[REFUSES])
    with running_server(team, router=router) as server:
        for _ in range(2):
            status, headers, _ = ask(server, WORDS, stream=True)
            assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "linguist", "mapped")
            assert "x-coe-certainty" not in headers


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (400, {"error": {"message": "Unrecognized request argument supplied: 'logprobs'", "param": None}}),
        (400, {"error": {"message": "not for this model", "param": "logprobs", "code": "unsupported_value"}}),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "logprobs"], "msg": "not permitted"}]}),
        (501, {"error": {"message": "Log probabilities are not implemented"}}),
    ],
)
def test_a_refusal_that_names_log_probabilities_is_recognised(router, status, refusal):
    refuses = Says(status, json.dumps(refusal).encode())
    with running_server(experts(linguist=[refuses]), router=router) as server:
        status, headers, _ = ask(server, WORDS)
        assert (status, headers["x-coe-expert"]) == (200, "linguist")


@pytest.mark.parametrize("status", [400, 404, 422, 501])
@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"message": "Bad Request"}},
        {"error": {"message": "the prompt 'what are logprobs good for?' is not allowed"}},
        {"detail": [{"loc": ["body", "temperature"], "msg": "too high", "input": {"logprobs": True}}]},
    ],
)
def test_a_request_is_not_sent_again_to_the_engine_that_refused_it_for_another_reason(router, status, refusal):
    refuses, sent_again = (
        Says(status, json.dumps(refusal).encode()),
        Says(200, token("mot", SURE), DONE, headers=EVENTS),
    )
    team = experts(linguist=[refuses, sent_again])
    with running_server(team, router=router) as server:
        ask(server, WORDS)
        assert team["linguist"].deaths == [sent_again]


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"message": "Bad Request", "type": "invalid_request_error", "code": 400}},
        {"error": {"message": "", "type": "BadRequestError"}},
        {"error": {"message": "Unsupported parameter", "code": "unsupported_parameter"}},
        {"detail": "Unprocessable Entity"},
    ],
)
def test_an_engine_that_refuses_again_and_again_without_a_reason_is_no_longer_asked_for_them(router, refusal, caplog):
    refuses = Says(400, json.dumps(refusal).encode())
    team = experts(linguist=[refuses] * 3)
    with running_server(team, router=router) as server:
        for left in (2, 1, 0):
            ask(server, WORDS)  # refused, or answered by another expert
            assert len(team["linguist"].deaths) == left
        status, headers, _ = ask(server, WORDS)
        assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "linguist", "mapped")
    assert [one.getMessage() for one in caplog.records if "log-probabilities" in one.getMessage()] == [
        "expert 'linguist' refuses log-probabilities: until a reload, its answers are not judged"
    ]


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"message": "temperature must not be negative", "code": 400}},
        {"error": {"message": "this model's context is 8 tokens", "type": "invalid_request_error"}},
        {"detail": [{"loc": ["body", "tools", 0], "msg": "Field required", "type": "missing"}]},
    ],
)
def test_callers_mistakes_in_a_row_turn_nothing_off_for_others(router, refusal):
    refuses = Says(400, json.dumps(refusal).encode())
    with running_server(experts(linguist=[*[refuses] * 5, unsure()]), router=router) as server:
        for _ in range(5):
            ask(server, WORDS, stream=True)
        assert ask(server, WORDS, stream=True)[1]["x-coe-reason"] == "handed_over"


def test_an_error_that_mentions_them_turns_nothing_off_if_the_request_without_them_is_refused_too(router):
    mentions = Says(400, b'{"error": {"message": "Unknown field: foo. Allowed: model, messages, logprobs"}}')
    team = experts(linguist=[mentions, mentions, unsure()])
    with running_server(team, router=router) as server:
        ask(server, WORDS, stream=True)  # twice, then another expert answers
        assert len(team["linguist"].deaths) == 1
        assert ask(server, WORDS, stream=True)[1]["x-coe-reason"] == "handed_over"


def test_refusals_without_a_reason_turn_nothing_off_once_an_engine_has_told_some(router):
    refuses = Says(400, b'{"error": {"message": "Bad Request", "code": 400}}')
    with running_server(experts(linguist=[unsure(), *[refuses] * 4]), router=router) as server:
        assert ask(server, WORDS, stream=True)[1]["x-coe-reason"] == "handed_over"
        assert [ask(server, WORDS)[0] for _ in range(4)] == [400] * 4
        assert ask(server, WORDS)[1]["x-coe-reason"] == "handed_over"


def test_a_request_that_is_refused_for_its_own_fault_is_told_so_and_nothing_is_remembered(router):
    wrong = Says(400, b'{"error": {"message": "temperature must not be negative", "code": 400}}')
    with running_server(experts(linguist=[wrong]), router=router) as server:
        status, _, raw = ask(server, WORDS)
        assert (status, json.loads(raw)["error"]["message"]) == (400, "temperature must not be negative")
        _, headers, _ = ask(server, WORDS)
        assert headers["x-coe-reason"] == "handed_over"


def test_one_request_that_cannot_have_them_turns_nothing_off_for_others(router):
    plain = Says(200, token("mot", SURE), DONE, headers=EVENTS)
    with running_server(experts(linguist=[unsure(), REFUSES, plain, unsure()]), router=router) as server:
        told = [ask(server, WORDS, stream=True)[1] for _ in range(3)]
    assert [one["x-coe-reason"] for one in told] == ["handed_over", "mapped", "handed_over"]
    assert "x-coe-certainty" not in told[1]


@pytest.mark.parametrize("number", ["NaN", "-" + "9" * 400, "Infinity", "-Infinity", '"-1"', "null"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_tells_anything_at_all_has_its_answer_passed_on_or_handed_over(router, number, stream):
    choice = '{"index":0,"%s":{"content":"bon"},"logprobs":{"content":[{"logprob":%s}]},"finish_reason":%s}'
    if stream:
        one = f'data: {{"choices":[{choice % ("delta", number, "null")}]}}\n\n'.encode()
        says = Says(200, one * 5, DONE, headers=EVENTS)
    else:
        says = Says(200, f'{{"choices":[{choice % ("message", number, chr(34) + "stop" + chr(34))}]}}'.encode())
    with running_server(experts(linguist=[says]), router=router) as server:
        status, headers, raw = ask(server, WORDS, stream=stream)
        assert (status, headers["x-coe-expert"]) in ((200, "linguist"), (200, "big"))
        assert b"NaN" not in raw
        assert headers.get("x-coe-certainty", "0.0000").replace(".", "").isdecimal()
        until(lambda: not any(leases(server).values()))
        assert decisions(server, 1)


def test_words_without_log_probabilities_are_passed_on_unjudged(router):
    word = b'data: {"choices":[{"index":0,"delta":{"content":"bon"}}]}\n\n'
    with running_server(experts(linguist=[Says(200, word, DONE, headers=EVENTS)]), router=router) as server:
        _, headers, raw = ask(server, WORDS, stream=True)
        assert (headers["x-coe-expert"], raw) == ("linguist", word + DONE)


def test_both_experts_and_what_was_expected_of_them_are_in_the_decision_and_in_the_log(router, caplog):
    kept = []
    journal = SimpleNamespace(keeps_prompts=False, record=lambda decision, *_: kept.append(decision.as_json()))
    journal.took = lambda *_: None
    caplog.set_level("INFO", "coe.requests")
    with running_server({name: simulated(name) for name in SIZES}, router=router, journal=journal) as server:
        ask(server, WORDS, stream=True)
        told = decisions(server, 2)
    assert [(one["expert"], one["reason"]) for one in told] == [("linguist", "mapped"), ("big", "handed_over")]
    (handover,) = kept[-1]["handovers"]
    assert (handover["first"], handover["second"], handover["expected"]) == (
        "linguist",
        "big",
        pytest.approx(0.7, abs=0.1),
    )
    assert handover["certainty"] < 0.05
    assert [one["expert"] for one in kept[-1]["ranking"]] == ["big", "coder", "linguist"]
    fields = next(record.fields for record in caplog.records if record.name == "coe.requests")
    assert (fields["expert"], fields["reason"]) == ("big", "handed_over")
    assert fields["handed_over"][0]["expert"] == "linguist"


def test_both_costs_count(router):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        _, headers, _ = ask(server, WORDS, stream=True)
        assert float(headers["x-coe-cost"]) == pytest.approx(SIZES["big"] + SIZES["linguist"] * 4 / 256, rel=1e-4)
        _, headers, _ = ask(server, WORDS)
        assert float(headers["x-coe-cost"]) == SIZES["big"] + SIZES["linguist"]
