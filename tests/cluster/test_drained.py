"""Which nodes are drained outlives the front; a damaged file stops its start instead of sending requests to them."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cluster.drained import Drained
from coe_server.errors import ConfigError

NAMES = ("left", "right", "10.0.0.1")


@given(changes=st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=6))
def test_what_is_kept_is_read_again(tmp_path_factory, changes):
    file = tmp_path_factory.mktemp("state") / "front" / "drained.json"
    drained, right = Drained(file), set()
    for name, is_drained in changes:
        (drained.add if is_drained else drained.discard)(name)
        (right.add if is_drained else right.discard)(name)
        asyncio.run(drained.keep())
    again = Drained(file)
    assert {name for name in NAMES if name in again} == right


def test_changes_at_the_same_time_keep_the_latest_names(tmp_path):
    drained = Drained(tmp_path / "drained.json")

    async def change():
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                drained.add(f"node-{number}")
                tasks.create_task(drained.keep())

    asyncio.run(change())
    again = Drained(tmp_path / "drained.json")
    assert all(f"node-{number}" in again for number in range(20))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"drained": "left"}', '{"drained": [1]}', "[" * 100_000, "\ud800"]
)
def test_a_damaged_file_stops_the_start_and_says_what_to_do(tmp_path, text):
    file = tmp_path / "drained.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match="remove the file, and drain nodes again"):
        Drained(file)


def test_a_file_that_cannot_be_written_is_told_and_the_node_is_drained_all_the_same(tmp_path, caplog):
    drained = Drained(tmp_path / "front" / "drained.json")
    (tmp_path / "front").write_text("a file where the folder would be")
    drained.add("left")
    asyncio.run(drained.keep())
    assert "left" in drained
    assert "a restart of the front forgets the change" in caplog.text
