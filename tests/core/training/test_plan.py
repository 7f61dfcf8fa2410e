"""What a plan says of memory and time: what is free, whether a run fits, what to lower, how long."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from luthier.core.training import execution

GB = 10**9


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 9 GB free, where nobody limits anything: a function that writes its files and asks what is free."""
    for name, file in (("MEMORY", "meminfo"), ("OWN_GROUPS", "cgroup"), ("OWN_SIZE", "statm"), ("GROUPS", "groups")):
        monkeypatch.setattr(execution, name, tmp_path / file)

    def free(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return execution.memory_free(torch.device("cpu"))

    free({"meminfo": f"MemTotal: 20 kB\nMemAvailable: {9 * GB // 1024} kB\n", "cgroup": "0::/\n"})
    return free


def group(folder, most, used, files=0, version=2):
    """A control group's files as Linux writes them."""
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = f"anon 7\n{names[2]} {files}\nactive_file 5\n"
    return {f"groups/{folder}{names[0]}": f"{most}\n", f"groups/{folder}{names[1]}": f"{used}\n"} | {
        f"groups/{folder}memory.stat": stat
    }


def near(free, expected):
    return abs(free - expected) < 2048  # meminfo counts in kB


def test_a_container_may_take_what_is_left_of_its_limit(machine):
    """4 GB allowed, 3 held, 1 of them files that were read and can be forgotten: 2 left. Its group is the mount."""
    assert machine(group("", 4 * GB, 3 * GB, GB)) == 2 * GB
    assert machine({"cgroup": "0::/system.slice/docker-5f.scope\n"}) == 2 * GB  # by the host's name
    assert near(machine(group("", 40 * GB, 3 * GB)), 9 * GB)  # the machine has less than the group may take
    assert near(machine(group("", "max", 3 * GB)), 9 * GB)
    assert machine(group("", 4 * GB, 4 * GB + 1)) == 1  # full; 0 would mean that nobody says


def test_the_limits_of_the_groups_above_count(machine):
    own = {"cgroup": "0::/user/job/step\n", **group("user/job/step/", "max", GB, GB)}
    assert machine({**own, **group("user/job/", 8 * GB, GB), **group("user/", 5 * GB, 2 * GB)}) == 3 * GB
    assert machine(group("user/job/step/", 3 * GB, GB)) == 2 * GB


def test_groups_of_the_first_version(machine):
    """With the controllers in folders of their own; no limit is a number that no machine has."""
    machine({"cgroup": "12:pids:/job\n4:memory:/docker/5f\n3:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n"})
    assert near(machine(group("memory/", 2**63 - 4096, 5 * GB, version=1)), 9 * GB)
    assert machine(group("memory/docker/5f/", 6 * GB, 5 * GB, GB // 2, version=1)) == 1.5 * GB


def test_without_control_groups_or_a_number_that_is_free(machine):
    assert near(machine({}), 9 * GB)
    assert machine({"meminfo": "MemTotal: 20 kB\n"}) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="macOS says nowhere how much a process has taken")
@pytest.mark.parametrize(("kind", "field"), [(resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)])
def test_what_a_process_may_take_by_itself(kind, field, machine, monkeypatch):
    """`ulimit -v` and `-d`, a GB above what this process has; allocating more than is said to be free fails."""
    monkeypatch.setattr(execution, "OWN_SIZE", statm := Path("/proc/self/statm"))
    before = resource.getrlimit(kind)
    most = int(statm.read_text().split()[field]) * resource.getpagesize() + GB
    resource.setrlimit(kind, (most, before[1]))
    try:
        free = machine({})
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(free + (1 << 24), dtype=torch.uint8)
        torch.empty(free - (1 << 26), dtype=torch.uint8)
    finally:
        resource.setrlimit(kind, before)
    assert 0.9 * GB < free <= 1.1 * GB
