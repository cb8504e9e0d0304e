"""A conversation stays with its expert: who is remembered, for whom, how long; and when its topic has changed."""

from dataclasses import replace

import pytest

from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import read_messages
from coe_server.routing.decision import Availability, Kept, RouteOptions
from coe_server.routing.router import Router
from coe_server.routing.sessions import Sessions, session_key
from tests.routing.small_artifact import FOREIGN, TEXTS, everywhere, held_out, small_artifact

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


def test_only_who_really_answered_is_remembered_and_a_kept_expert_keeps_its_topic(router):
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


def test_a_first_turn_is_nobodys_continuation_unless_the_session_is_named(router):
    sessions = Sessions()
    sessions.remember(b"k", decision(router))
    assert sessions.last(b"k", said("hello"), OPTIONS) is None
    assert sessions.last(b"k", said("hello"), replace(OPTIONS, session="mine")) is not None
    assert sessions.last(None, said("a", "b"), OPTIONS) is None


def test_the_memory_is_bounded_and_forgets_who_was_silent_longest(router):
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
