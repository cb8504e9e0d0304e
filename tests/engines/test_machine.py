"""How much memory there is for us: what the kernel leaves, or a control group's limit if that is less."""

import pytest

from coe_server.engines.machine import available_host_bytes


@pytest.mark.parametrize(("limit", "available"), [("max", 4096 * 1024), ("3000000", 3000000), ("9000000", 4096 * 1024)])
def test_what_is_available_is_what_the_kernel_or_the_control_group_leaves(tmp_path, limit, available):
    (tmp_path / "meminfo").write_text("MemTotal:  8192 kB\nMemAvailable:    4096 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert available_host_bytes(tmp_path, tmp_path) == available


@pytest.mark.parametrize(
    ("groups", "folder", "file"),
    [
        ("0::/system.slice/coe.service", "system.slice/coe.service", "memory.max"),
        ("0::/system.slice/coe.service", "system.slice", "memory.max"),
        ("0::/", "", "memory.max"),
        ("5:cpu,memory:/coe\n1:name=systemd:/\n0::/", "memory/coe", "memory.limit_in_bytes"),
        ("5:memory:/docker/1234", "memory", "memory.limit_in_bytes"),
    ],
)
def test_the_limit_of_the_service_counts_as_that_of_a_container_does(tmp_path, groups, folder, file):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  8192 kB\nMemAvailable:    4096 kB\n")
    (proc / "self/cgroup").write_text(f"{groups}\n")
    place, elsewhere = cgroups / folder, cgroups / "other.service"
    for group, limit in ((place, "3000000"), (elsewhere, "1000000")):
        group.mkdir(parents=True, exist_ok=True)
        (group / file).write_text(f"{limit}\n")
    assert available_host_bytes(proc, cgroups) == 3_000_000
