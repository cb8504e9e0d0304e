"""The table of experts: nothing in it is cut, whatever the width."""

import pytest
from rich.console import Console

from coe_server.commands.experts import Seen, experts_table
from coe_server.commands.terminal import IN_FULL

MOVE = {"from": "device", "to": "host", "seconds": 0.3, "bytes": 1}


def expert(name, **more):
    held = {"device": 15 * 2**30, "host": 15 * 2**30}
    return {"name": name, "state": "device", "residency": "device", "bytes": held, "leases": 2, "queued": 11} | {
        "cards": [{"index": 0, "bytes": held["device"]}],
        "pin": None,
        "last_move": MOVE,
        "failure": None,
        **more,
    }


ONE_CARD = [{"used": 15 * 2**30, "capacity": 22 * 2**30}]


def lines(found, width, cards=ONE_CARD):
    console = Console(width=width)
    with console.capture() as shown:
        console.print(experts_table(Seen(found, cards), width))
    return [line.rstrip() for line in shown.get().splitlines()]


def test_where_there_is_room_everything_is_shown():
    head, one = lines([expert("coder", pin="host")], IN_FULL)
    assert head.split() == ["expert", "state", "pin", "device", "host", "leases", "queued", "last", "move"]
    assert one.endswith("device -> host, 0.30 s")


def test_on_several_cards_each_expert_names_its_own():
    two = [{"index": 0, "bytes": 1}, {"index": 1, "bytes": 1}]
    found = [expert("wide", cards=two), expert("asleep", cards=[])]
    head, wide, asleep, *_ = lines(found, IN_FULL, cards=ONE_CARD * 2)
    assert head.split()[:5] == ["expert", "state", "pin", "cards", "device"]
    assert wide.split()[2:4] == ["0,", "1"]
    assert "0" not in asleep.split()[:3]


@pytest.mark.parametrize(
    ("pin", "width", "columns", "missing"),
    [
        (None, 78, "expert state device host leases queued last move", None),
        (None, 77, "expert state device host leases queued", "last move"),
        ("host", 60, "expert state pin device host leases queued", "last move"),
        ("host", 59, "expert state device host leases queued", "pin, last move"),
        (None, 36, "expert state device queued", "host, leases, last move"),
    ],
)
def test_columns_that_tell_least_make_room_first(pin, width, columns, missing):
    head, one, *rest = lines([expert("coder", pin=pin)], width)
    assert head.split() == columns.split()
    assert "15,360 MiB" in one
    assert " ".join(rest) == ("" if missing is None else f"Not shown: {missing}; --json has all columns.")
    assert all("…" not in line and len(line) <= width for line in (head, one, *rest))


def test_a_long_name_is_folded_and_not_cut():
    shown = lines([expert("a" * 60)], 50)
    assert "".join(line.split(" ")[0] for line in shown).count("a") == 60
    assert "…" not in "".join(shown)


def test_what_a_failed_experts_server_said_colours_and_forges_nothing():
    failure = "answered 500: \x1b[2J\x1b]0;PWNED\x07 [bold]\nevil device"
    found = [expert("ev[red]il\x1b[31m", failure=failure, state="fai\x9bled\nx", pin="\r")]
    shown = lines(found, IN_FULL)
    assert not any(one in "".join(shown) for one in "\x1b\x07\x9b\r")
    assert shown[1].startswith(r"ev[red]il\x1b[31m")
    assert shown[-2:] == [
        r"ev[red]il\x1b[31m failed: answered 500: \x1b[2J\x1b]0;PWNED\x07 [bold]",
        "    evil device",
    ]


def test_each_of_several_cards_has_a_line_with_its_experts_and_what_sleepers_keep():
    on_both = [{"index": card, "bytes": 10 * 2**30} for card in (0, 1)]
    keeps = [{"index": 1, "bytes": 2**29}]
    found = [
        expert("wide", cards=on_both),
        expert("tired", state="host", residency="host", cards=keeps),
        expert("worn", state="host", residency="host", cards=keeps),
        expert("away", state="disk", residency="disk", cards=[]),
    ]
    cards = [{"used": 10 * 2**30, "capacity": 22 * 2**30}, {"used": 11 * 2**30, "capacity": 22 * 2**30}]
    shown = lines(found, IN_FULL, cards)
    assert shown[0].split() == ["expert", "state", "pin", "cards", "device", "host", "leases", "queued", "last", "move"]
    assert shown[1].split()[:4] == ["wide", "device", "0,", "1"]
    head, first, second = shown[-3:]
    assert head.split() == ["card", "used", "free", "limit", "loaded", "asleep"]
    assert first.split("  ") == ["", " 0", "10,240 MiB", "12,288 MiB", "22,528 MiB", "wide"]
    assert second.endswith("11,264 MiB  11,264 MiB  22,528 MiB  wide    tired, worn: 1,024 MiB")


def test_one_card_is_told_by_the_table_of_experts_alone():
    assert len(lines([expert("coder")], IN_FULL)) == 2
