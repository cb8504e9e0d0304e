"""The directories: fixed addresses, and the addresses behind a name."""

import asyncio

from coe_server.cluster.directory import DnsDirectory, NodeAddress, StaticDirectory
from tests.patience import PATIENCE_SECONDS


def test_a_static_directory_has_what_it_was_given():
    one = NodeAddress("left", "http://10.0.0.1:8081")
    assert StaticDirectory([one]).addresses() == (one,)


def test_every_address_behind_a_name_is_a_node_and_a_failed_look_up_changes_nothing(caplog):
    answers = [["10.0.0.2", "10.0.0.1", "10.0.0.1"], OSError("no such name"), [], ["10.0.0.2", "fd00::3"]]
    seen = []

    async def find(host, port):
        assert (host, port) == ("nodes.example", 8081)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def story():
        directory = DnsDirectory("nodes.example", 8081, "https", 0.001, find)
        done = asyncio.Event()

        def changed():
            seen.append(directory.addresses())
            if not answers:
                done.set()

        following = asyncio.create_task(directory.run(changed))
        await asyncio.wait_for(done.wait(), PATIENCE_SECONDS)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(story())
    assert seen == [
        (NodeAddress("10.0.0.1", "https://10.0.0.1:8081"), NodeAddress("10.0.0.2", "https://10.0.0.2:8081")),
        (NodeAddress("10.0.0.2", "https://10.0.0.2:8081"), NodeAddress("fd00--3", "https://[fd00::3]:8081")),
    ]
    assert "the last addresses stay" in caplog.text
