"""A snapshot goes out as JSON and comes in checked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cluster.snapshot import (
    PROTOCOL,
    CapabilitiesOnNode,
    ExpertOnNode,
    FootprintOnNode,
    NodeSnapshot,
    read_snapshot,
)
from coe_server.errors import BadSnapshot

seconds = st.floats(0, 1e6, allow_nan=False)
counts = st.integers(0, 10**6)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
experts = st.builds(
    ExpertOnNode,
    name=names,
    tier=st.sampled_from(["device", "host", "disk", "remote"]),
    seat=st.lists(st.integers(0, 7), max_size=4).map(tuple),
    leases=counts,
    queued=counts,
    wait_seconds=seconds,
    switch_seconds=seconds,
    failure=st.none() | st.text(st.characters(categories=["L", "N", "P"]), max_size=40),
    returns_seconds=st.none() | seconds,
    footprint=st.builds(FootprintOnNode, device_awake_bytes=counts, host_bytes=counts),
    capabilities=st.builds(
        CapabilitiesOnNode,
        context_tokens=st.none() | st.integers(1, 10**6),
        modalities=st.dictionaries(st.sampled_from(["image", "audio"]), st.booleans()),
        endpoints=st.none() | st.just(("chat", "completions")),
    ),
)
snapshots = st.builds(
    NodeSnapshot,
    node=names,
    protocol=st.just(PROTOCOL),
    sequence=counts,
    experts=st.lists(experts, max_size=4).map(lambda found: {one.name: one for one in found}),
    draining=st.booleans(),
    capacity_bytes=st.lists(counts, max_size=3).map(tuple),
)


@given(snapshots)
def test_a_snapshot_comes_back_from_its_json(snapshot: NodeSnapshot) -> None:
    assert read_snapshot(json.dumps(snapshot.as_json())) == snapshot


def test_fields_of_a_later_version_are_ignored() -> None:
    said = {"node": "left", "protocol": PROTOCOL, "sequence": 3, "experts": {}, "moon": "full"}
    assert read_snapshot(json.dumps(said)) == NodeSnapshot("left", PROTOCOL, 3, {})


def test_of_another_protocol_only_who_speaks_is_read() -> None:
    said = {"node": "left", "protocol": PROTOCOL + 1, "version": "9.0", "sequence": "x", "experts": ["what?"]}
    snapshot = read_snapshot(json.dumps(said))
    assert not snapshot.understood
    assert (snapshot.node, snapshot.version, snapshot.experts) == ("left", "9.0", {})


def test_a_sentence_of_a_node_cannot_forge_a_line_of_the_log() -> None:
    said = _said(failure="broken\nall is well\x1b[2J")
    assert read_snapshot(said).experts["coder"].failure == "broken all is well [2J"


def _said(**fields: Any) -> str:
    expert = {"name": "coder", "tier": "device", **fields}
    return json.dumps({"node": "left", "protocol": PROTOCOL, "sequence": 0, "experts": {"coder": expert}})


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "NodeSnapshot"),
        ("{}", "node"),
        (_said(tier="moon"), "tier"),
        (_said(wait_seconds=-1), "wait_seconds"),
        (_said(wait_seconds=float("inf")), "wait_seconds"),
        (_said(leases=-1), "leases"),
        (_said(name="other"), "listed as 'coder'"),
        (_said(name="a b"), "not a name"),
    ],
)
def test_a_mistake_is_named(text: str, mistake: str) -> None:
    with pytest.raises(BadSnapshot, match=mistake):
        read_snapshot(text)
