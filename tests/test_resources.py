"""What a process may use: cores and memory, read from made-up control groups, limits and SLURM's variables."""

import os
import resource
import tracemalloc

import pytest

import parallelcnn as pc
from parallelcnn.cli import command
from parallelcnn.comm import run_together
from parallelcnn.errors import ParallelCNNError, ShapeError
from parallelcnn.resources import check_memory, core_quota, memory_limit

MIB = 1 << 20


@pytest.fixture
def write_groups(tmp_path):
    """Writes the files of control groups; returns the arguments that name them."""

    def write_groups(groups, files):
        if groups is not None:
            (tmp_path / "cgroup").write_bytes(os.fsencode(groups))
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(os.fsencode(f"{content}\n"))
        return tmp_path / "cgroup", tmp_path

    return write_groups


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for variable in ("SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/outer/inner\n", {"outer/cpu.max": "300000 100000", "outer/inner/cpu.max": "max 100000"}, 3),
        ("0::/outer/inner\n", {"outer/cpu.max": "300000 100000", "outer/inner/cpu.max": "200000 100000"}, 2),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "600000", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {}, None),
        (None, {}, None),
        ("no fields\n0:two\n0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\udcff\n0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("0::/\n", {"cpu.max": "100000 100000 \udcff"}, None),
    ],
)
def test_the_core_quota_of_a_container_is_read(groups, files, wanted, write_groups, monkeypatch):
    where = write_groups(groups, files)
    assert core_quota(*where) == wanted
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert core_quota(*where) == min(wanted or 3, 3)


def test_a_control_group_of_3000_folders_takes_no_memory(tmp_path):
    (tmp_path / "cgroup").write_text("0::" + "/a" * 3000)
    tracemalloc.start()
    try:
        core_quota(tmp_path / "cgroup", tmp_path)
        memory_limit(tmp_path / "cgroup", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()


@pytest.fixture
def machine(monkeypatch):
    """A machine of 64 GiB, without limits."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}.__getitem__)
    limits = {}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits.get(kind, (resource.RLIM_INFINITY,) * 2))
    return limits


_UNLIMITED_1 = str(2**63 - 4096)


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        (None, {}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {"memory.max": 512 * MIB}, 512),
        ("0::/outer/inner\n", {"outer/memory.max": 300 * MIB, "outer/inner/memory.max": "max"}, 300),
        ("0::/outer/inner\n", {"outer/memory.max": 300 * MIB, "outer/inner/memory.max": 200 * MIB}, 200),
        ("0::/outer/inner\n", {"memory.max": 100 * MIB, "outer/inner/memory.max": 200 * MIB}, 100),
        ("0::/elsewhere\n", {"outer/memory.max": 300 * MIB}, None),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": 400 * MIB}, 400),
        ("4:memory:/job/step\n", {"memory/job/memory.limit_in_bytes": 400 * MIB}, 400),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": _UNLIMITED_1}, None),
        ("4:cpu:/\n0::/\n", {"cpu/memory.limit_in_bytes": 5, "memory/memory.limit_in_bytes": 5}, None),
        ("1:cpu:/\n4:memory,hugetlb:/\n0::/\n", {"memory/memory.limit_in_bytes": 400 * MIB}, 400),
        ("0::/\n", {"memory.max": 2**50}, None),  # more than there is
        ("0::/\n", {"memory.max": "-1"}, None),
        ("0::/\n", {"memory.max": "\udcff"}, None),
        ("0::/\n", {"memory.max": "9" * 5000}, None),
    ],
)
def test_the_memory_limit_of_a_container_is_read(groups, files, wanted, write_groups, machine):
    limit = memory_limit(*write_groups(groups, files))
    if wanted is None:
        assert limit == (2**36, "this machine")
    else:
        assert limit == (wanted * MIB, "this container or job (its control group)")


def test_the_smallest_of_all_limits_is_named(write_groups, machine, monkeypatch):
    where = write_groups("0::/\n", {"memory.max": 6000 * MIB})
    machine[resource.RLIMIT_AS] = (5000 * MIB, resource.RLIM_INFINITY)
    assert memory_limit(*where) == (5000 * MIB, "ulimit -v")
    machine[resource.RLIMIT_DATA] = (4000 * MIB, 9000 * MIB)
    assert memory_limit(*where) == (4000 * MIB, "ulimit -d")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "3000")
    assert memory_limit(*where) == (3000 * MIB, "SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "500")
    assert memory_limit(*where) == (3000 * MIB, "SLURM_MEM_PER_NODE")  # of how many CPUs is not known
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert memory_limit(*where) == (2000 * MIB, "SLURM_MEM_PER_CPU on 4 CPUs")
    for variable in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.setenv(variable, "0")  # all the memory of the node
    assert memory_limit(*where) == (4000 * MIB, "ulimit -d")


def test_a_network_that_does_not_fit_into_a_limit_is_rejected_with_its_name(machine, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "64")
    with pytest.raises(ShapeError, match=r"take 65 MiB, more than the 64 MiB of SLURM_MEM_PER_NODE$"):
        check_memory("they", 65 * MIB)
    with pytest.raises(ShapeError, match=r"more than the 64 MiB of SLURM_MEM_PER_NODE$"):
        pc.NetworkHandler((pc.Dense(10_000),), (10_000,))
    check_memory("they", 64 * MIB)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 4.00 GiB for an array"), "Unable to allocate 4.00 GiB for an array"),
    ],
)
def test_memory_that_is_not_there_all_the_same_is_a_sentence(error, said, capsys):
    assert command._fail(error, pc.Serial()) == 1
    assert capsys.readouterr().err == f"parallelcnn: error: {said}\n"

    def fail():
        raise error

    with pytest.raises(ParallelCNNError) as caught:
        run_together(pc.Serial(), fail)
    assert str(caught.value) == said
