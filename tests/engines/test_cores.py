"""Cores of made-up machines: shares of pretend cards, and what is near a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.engines.cores import Core, divided, here, near, parse_list


def machine(root: Path, nodes: dict[int, str], siblings: dict[int, str]) -> Path:
    """A made-up /sys/devices/system: cores of each node, and threads of each core's physical core."""
    for node, cores in nodes.items():
        (root / f"node/node{node}").mkdir(parents=True)
        (root / f"node/node{node}/cpulist").write_text(f"{cores}\n")
    for core, threads in siblings.items():
        (root / f"cpu/cpu{core}/topology").mkdir(parents=True)
        (root / f"cpu/cpu{core}/topology/thread_siblings_list").write_text(f"{threads}\n")
    return root


def two_sockets(root: Path) -> tuple[Core, ...]:
    """Four physical cores with two threads each, numbered as on x86: all first threads come first."""
    siblings = {core: f"{core % 4},{core % 4 + 4}" for core in range(8)}
    return here(machine(root, {0: "0-1,4-5", 1: "2-3,6-7"}, siblings), allowed=range(8))


@pytest.mark.parametrize(("text", "cores"), [("0-3,8\n", (0, 1, 2, 3, 8)), ("5", (5,)), ("\n", ()), ("", ())])
def test_lists_are_read_as_linux_writes_them(text: str, cores: tuple[int, ...]) -> None:
    assert parse_list(text) == cores


def test_two_cards_of_two_sockets_have_a_socket_each(tmp_path: Path) -> None:
    assert divided(two_sockets(tmp_path), 2) == ((0, 1, 4, 5), (2, 3, 6, 7))


def test_threads_of_a_physical_core_go_to_one_card_while_there_are_enough(tmp_path: Path) -> None:
    cores = two_sockets(tmp_path)
    assert divided(cores, 4) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert divided(cores, 8) == ((0,), (4,), (1,), (5,), (2,), (6,), (3,), (7,))


def test_only_cores_that_this_process_may_use_are_given(tmp_path: Path) -> None:
    root = machine(tmp_path, {0: "0-3"}, {})
    assert divided(here(root, allowed={1, 3}), 2) == ((1,), (3,))


def test_a_machine_that_tells_nothing_has_one_node(tmp_path: Path) -> None:
    assert here(tmp_path, allowed={0, 1}) == (Core(0, 0, 0), Core(1, 0, 1))


@given(st.integers(1, 40), st.integers(1, 12))
def test_every_card_has_cores_and_none_is_given_twice_where_there_are_enough(count: int, cards: int) -> None:
    shares = divided([Core(index, index % 2, index) for index in range(count)], cards)
    given_out = [core for share in shares for core in share]
    assert len(shares) == cards
    assert all(shares)
    if count >= cards:
        assert sorted(given_out) == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_near_a_card_are_the_cores_of_its_node(tmp_path: Path) -> None:
    cores = two_sockets(tmp_path)
    assert near(cores, [1]) == (2, 3, 6, 7)
    assert near(cores, [0, 0]) == (0, 1, 4, 5)


def test_nothing_is_bound_where_that_would_change_nothing(tmp_path: Path) -> None:
    cores = two_sockets(tmp_path)
    assert near(cores, [0, 1]) == ()  # all of them
    assert near(cores, [None]) == ()
    assert near(cores, [0, None]) == ()
    assert near(cores, [7]) == ()  # a node without cores of ours
    asked = iter([0])
    assert near([core for core in cores if core.node == 0], asked) == (), "one socket"
    assert list(asked) == [0], "no card was asked"
