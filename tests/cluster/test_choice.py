"""The order in which nodes are tried: properties on random nodes, then telling examples."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cluster.choice import CONVERSATION_SECONDS, admits, best_of_nodes, choose
from coe_server.cluster.sent import Sent
from coe_server.cluster.snapshot import CapabilitiesOnNode, NodeSnapshot
from tests.cluster.nodes import NAMES, answered, asleep, loaded, node, on_disk, sent_to, several_nodes, traffic
from tests.examples import examples

asked = st.sampled_from(NAMES)
names_of_nodes = st.integers(0, 5).map("node-{}".format)


def has_an_idle_copy(where: NodeSnapshot, expert: str, sent: Sent) -> bool:
    one = where.experts[expert]
    is_loaded = one.tier == "device" and one.state == "device"
    return is_loaded and not (one.leases or one.queued or sent.unanswered(where.node).get(expert))


def is_cold(where: NodeSnapshot, expert: str) -> bool:
    one = where.experts[expert]
    return one.tier != "device" or one.state != "device"


@given(asked, several_nodes(), traffic(), st.frozensets(names_of_nodes), st.none() | names_of_nodes)
@examples(200)
def test_every_node_that_admits_the_expert_is_tried_once_and_no_other(expert, nodes, sent, drained, own):
    order = choose(expert, nodes, sent, own, drained)
    able = [
        one.node
        for one in nodes
        if expert in one.experts and one.experts[expert].failure is None and one.understood and not one.draining
    ]
    assert sorted(order) == sorted(set(able) - drained)


@given(asked, several_nodes(), traffic(), names_of_nodes)
@examples(100)
def test_a_draining_node_gets_nothing_new_not_even_its_own_conversations(expert, nodes, sent, own):
    draining = [replace(one, draining=True) if one.node == own else one for one in nodes]
    assert own not in choose(expert, draining, sent, own)
    assert own not in choose(expert, nodes, sent, own, drained={own})


@given(asked, several_nodes(), traffic(), st.none() | names_of_nodes)
@examples(200)
def test_an_idle_loaded_copy_is_never_passed_over_for_a_cold_one(expert, nodes, sent, own):
    there = {one.node: one for one in nodes}
    order = choose(expert, nodes, sent, own)
    idle = [place for place, name in enumerate(order) if has_an_idle_copy(there[name], expert, sent)]
    cold = [place for place, name in enumerate(order) if is_cold(there[name], expert)]
    assert not idle or not cold or max(idle) < min(cold)


@given(asked, several_nodes(), traffic(), names_of_nodes)
@examples(200)
def test_a_conversation_keeps_its_node_while_the_expert_is_loaded_there_with_room(expert, nodes, sent, own):
    there = {one.node: one for one in nodes}
    stays = own in there and admits(there[own], expert) and has_an_idle_copy(there[own], expert, sent)
    if stays:
        assert choose(expert, nodes, sent, own)[0] == own


@given(asked, several_nodes(), traffic(), st.none() | names_of_nodes, st.randoms())
@examples(100)
def test_the_order_in_which_nodes_are_listed_changes_nothing(expert, nodes, sent, own, random):
    order = choose(expert, nodes, sent, own)
    random.shuffle(nodes)
    assert choose(expert, nodes, sent, own) == order


def test_equal_nodes_are_tried_by_name():
    assert choose("a", [node("right", loaded("a")), node("left", loaded("a"))], Sent()) == ("left", "right")


def test_an_expert_stays_where_it_is_until_its_queue_costs_more_than_bringing_it_up_elsewhere():
    def first(wait_seconds: float) -> str:
        queue = loaded("a", 4, 9, wait_seconds)
        return choose("a", [node("busy", queue), node("free", on_disk("a", 40.0))], Sent())[0]

    assert [first(seconds) for seconds in (0.0, 12.0, 39.0, 41.0)] == ["busy", "busy", "busy", "free"]


def test_what_is_displaced_there_counts():
    """Both would wake it in 0.4 s. What was asked for last is missed more than what was asked for long ago."""
    nodes = [
        node("near", asleep("a"), loaded("b"), on_device=1),
        node("old", asleep("a"), loaded("c"), on_device=1),
    ]
    sent = answered(Sent(), [("old", "c"), *[("elsewhere", "z")] * 100, ("near", "b")])
    assert choose("a", nodes, sent) == ("old", "near")
    free = node("with-room", asleep("a"), loaded("b"), on_device=2)
    assert choose("a", [*nodes, free], answered(sent, [("with-room", "b")]))[0] == "with-room"


def test_a_pinned_expert_displaces_none_and_none_leaves_for_its_room():
    sent = answered(Sent(), [("pinned", "b"), ("other", "b")])
    nodes = [node("other", asleep("a"), loaded("b"), on_device=1)]
    nodes.append(node("pinned", asleep("a", pin="host"), loaded("b"), on_device=1))
    assert choose("a", nodes, sent) == ("pinned", "other")


def test_the_last_image_in_host_memory_is_not_lost_for_a_start_where_another_node_has_a_copy_to_lose():
    full = {"on_device": 1, "in_host": 1}
    alone = node("alone", on_disk("a"), asleep("b"), **full)
    twice = node("twice", on_disk("a"), asleep("c"), **full)
    third = node("third", asleep("c"))
    assert choose("a", [alone, twice, third], Sent())[0] == "twice"
    both = [alone, node("twice", on_disk("a"), asleep("c"), **full)]
    assert choose("a", both, answered(Sent(), [("twice", "c")]))[0] == "alone"


def test_requests_that_the_last_snapshot_does_not_show_take_room_and_turns():
    """Both nodes are told as idle; the front has just sent four requests to the first, which has four places."""
    nodes = [node("left", loaded("a")), node("right", loaded("a"))]
    assert choose("a", nodes, sent_to(*[("left", "a")] * 3))[0] == "left"
    assert choose("a", nodes, sent_to(*[("left", "a")] * 4))[0] == "right"
    starts = [node("left", on_disk("a"), on_disk("b")), node("right", on_disk("a"), on_disk("b"))]
    assert choose("a", starts, sent_to(("left", "b")))[0] == "right"


def test_requests_that_the_last_snapshot_shows_are_not_counted_again():
    nodes = [node("left", loaded("a", leases=3)), node("right", asleep("a"))]
    assert choose("a", nodes, sent_to(*[("left", "a")] * 3))[0] == "left"


def test_an_expert_on_its_way_up_is_awaited_there():
    nodes = [node("left", on_disk("a")), node("right", on_disk("a"))]
    assert choose("a", nodes, sent_to(("right", "a")))[0] == "right"


def test_an_adapter_counts_with_its_base():
    nodes = [
        node("left", loaded("base"), replace(loaded("base"), name="sql", base="base")),
        node("right", loaded("base"), replace(loaded("base"), name="sql", base="base")),
    ]
    assert choose("sql", nodes, sent_to(*[("left", "base")] * 4))[0] == "right"


def test_a_conversation_leaves_a_node_whose_wait_is_longer_by_more_than_its_cached_prefix_is_worth():
    def first(wait_seconds: float) -> str:
        queue = loaded("a", 4, 2, wait_seconds)
        return choose("a", [node("own", queue), node("other", loaded("a"))], Sent(), "own")[0]

    assert [first(CONVERSATION_SECONDS - 0.1), first(CONVERSATION_SECONDS + 0.1)] == ["own", "other"]


def test_a_request_for_several_answers_goes_where_all_have_room():
    nodes = [node("left", loaded("a", leases=2)), node("right", loaded("a"))]
    assert choose("a", nodes, Sent(), answers=2)[0] == "left"
    assert choose("a", nodes, Sent(), answers=3)[0] == "right"


def test_cards_that_a_node_did_not_tell_of_are_full():
    odd = node("odd", asleep("a", seat=(7,)), capacity_bytes=())
    assert choose("a", [odd, node("well", asleep("a"))], Sent()) == ("odd", "well")


@given(asked, several_nodes(), traffic(), st.frozensets(names_of_nodes))
@examples(200)
def test_the_router_is_told_of_the_node_with_the_shortest_wait(expert, nodes, sent, drained):
    found = best_of_nodes(expert, nodes, sent, drained)
    having = [one for one in nodes if expert in one.experts]
    order = choose(expert, nodes, sent, drained=drained)
    if not having:
        assert found is None
    elif not order:
        assert found is not None
        assert found.failure
    else:
        assert found is not None
        assert found.failure is None
        alone = [best_of_nodes(expert, [one], sent) for one in nodes if one.node in order]
        assert found.wait_seconds == min(one.wait_seconds for one in alone if one is not None)
        if any(has_an_idle_copy(one, expert, sent) for one in nodes if one.node in order):
            assert (found.tier, found.wait_seconds) == ("device", 0.0)


def test_of_an_expert_that_fails_everywhere_the_failure_that_ends_first_is_told():
    nodes = [
        node("left", on_disk("a", failure="no memory", returns_seconds=30.0)),
        node("right", on_disk("a", failure="its engine died", returns_seconds=5.0)),
        node("third", on_disk("a", failure="never")),
    ]
    found = best_of_nodes("a", nodes, Sent())
    assert found is not None
    assert (found.failure, found.returns_seconds) == ("its engine died", 5.0)


def test_an_expert_whose_only_node_drains_is_unavailable_with_a_reason():
    found = best_of_nodes("a", [node("left", loaded("a"))], Sent(), drained={"left"})
    assert found is not None
    assert found.failure == "every node that has it is being drained"


def test_the_shortest_context_of_the_nodes_is_told():
    """A request that one node refused goes to the next."""
    long, short = (loaded("a", capabilities=CapabilitiesOnNode(tokens)) for tokens in (32_000, 8_000))
    unknown = node("unknown", loaded("a"))
    found = best_of_nodes("a", [node("left", long), node("right", short), unknown], Sent())
    assert found is not None
    assert found.longest_tokens == 8_000
    only = best_of_nodes("a", [unknown], Sent())
    assert only is not None
    assert only.longest_tokens is None


def test_what_is_answered_is_not_counted_any_more():
    sent = Sent()
    with sent.sending("left", "a", 3), sent.sending("left", "a"), sent.sending("left", "b"):
        assert sent.unanswered("left") == {"a": 4, "b": 1}
    assert sent.unanswered("left") == {}
    with pytest.raises(OSError, match="gone"), sent.sending("left", "a"):
        raise OSError("gone")
    assert sent.unanswered("left") == {}


def test_age_is_the_number_of_later_requests():
    sent = answered(Sent(), [("left", "a"), ("right", "a"), ("left", "b")])
    assert [sent.age("left", "b"), sent.age("right", "a"), sent.age("left", "a"), sent.age("left", "z")] == [0, 1, 2, 3]
    sent.forget("left")
    assert [sent.age("right", "a"), sent.age("left", "b")] == [1, 3]
