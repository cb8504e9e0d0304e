"""Nodes on a real Ray cluster, whose machines are processes of this one: started, killed, found again, ended."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

from tests.cluster.on_ray import on_ray
from tests.cluster.servers import KEY, expert, node_settings
from tests.patience import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: it comes with the extra `ray`"
    ),
]


@pytest.fixture(scope="module", name="on_ray")
def two_machines():
    with on_ray(node_settings([expert("coder")], http={"port": 0, "shutdown_seconds": 1})) as made:
        yield made


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_up_starts_a_node_on_each_machine_and_warns_that_ray_asks_for_no_token(on_ray):
    told, warned = on_ray.up
    assert "box-a" in told
    assert "box-b" in told
    assert "Ray asks for no token here" in warned


@pytest.mark.parametrize("name", ["box-a", "box-b"])
def test_the_front_finds_each_node_and_is_answered_by_it(on_ray, name):
    (other,) = {"box-a", "box-b"} - {name}
    on_ray.front.ask("POST", f"/admin/nodes/{other}/drain")
    status, headers, _ = on_ray.front.chat("coder")
    on_ray.front.ask("POST", f"/admin/nodes/{other}/resume")
    assert (status, headers["x-coe-node"]) == (200, name)


def test_neither_the_node_key_nor_rays_own_settings_are_where_they_do_not_belong(on_ray):
    assert KEY not in on_ray.file.read_text()
    (server,) = children_of(on_ray.runs()["box-a"]["keeper_pid"])
    variables = [one.split(b"=")[0] for one in Path(f"/proc/{server}/environ").read_bytes().split(b"\0")]
    assert [name for name in variables if name.startswith(b"RAY_")] == []


def test_another_plan_is_refused_while_nodes_run(on_ray):
    other = on_ray.folder / "other.yaml"
    other.write_text(on_ray.file.read_text().replace("coder", "poet"))
    with pytest.raises(AssertionError, match="end them first: coe cluster down"):
        on_ray.coe("up", str(other))


def test_a_server_ends_with_its_actor_and_ray_starts_both_again(on_ray):
    before = on_ray.runs()["box-a"]
    (server,) = children_of(before["keeper_pid"])
    os.kill(parent_of(before["keeper_pid"]), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{server}").exists())
    until(lambda: (now := on_ray.runs()["box-a"])["url"] not in {None, before["url"]} and now["state"] == "running")
    on_ray.front.until_usable("box-a", "box-b")


def test_a_killed_server_is_started_again_by_its_actor(on_ray):
    before = on_ray.runs()["box-b"]
    (server,) = children_of(before["keeper_pid"])
    os.kill(server, signal.SIGKILL)
    until(lambda: (now := on_ray.runs()["box-b"])["runs"] == before["runs"] + 1 and now["state"] == "running")
    on_ray.front.until_usable("box-a", "box-b")


def test_a_killed_machine_gets_nothing_and_is_back_under_its_name(on_ray):
    on_ray.ray.kill("box-b")
    until(lambda: not on_ray.front.nodes().get("box-b", {"usable": False})["usable"])
    assert {on_ray.front.chat("coder", text=f"hello {turn}")[1]["x-coe-node"] for turn in range(5)} == {"box-a"}
    on_ray.ray.add("box-b")
    until(lambda: "box-b" in on_ray.front.nodes())
    on_ray.front.until_usable("box-a", "box-b")


def test_without_its_directory_the_front_goes_on_and_a_new_directory_finds_the_nodes(on_ray):
    before = {name: run["keeper_pid"] for name, run in on_ray.runs().items()}
    on_ray.ray.kill_directory()
    assert on_ray.front.chat("coder")[0] == 200
    until(lambda: {name: run["keeper_pid"] for name, run in on_ray.runs().items()} == before)
    assert all(one["usable"] for one in on_ray.front.nodes().values())


def test_down_ends_the_nodes(on_ray):
    keepers = [run["keeper_pid"] for run in on_ray.runs().values()]
    assert on_ray.coe("down")[0] == "2 nodes have ended\n"
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in keepers))
    with pytest.raises(AssertionError, match="no directory of nodes is on this Ray cluster"):
        on_ray.coe("status")
    assert on_ray.front.chat("coder")[0] == 503
