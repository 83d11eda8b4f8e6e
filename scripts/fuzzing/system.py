"""What the system says, fuzzed: the environment that launchers set, and the files of control groups."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzing.watch import MEBIBYTE, Violation, examine
from parallelcnn import comm
from parallelcnn.resources import core_quota, memory_limit

VARIABLES = (
    "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURMD_NODENAME",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS", "PARALLELCNN_CACHE", "PARALLELCNN_MNIST_MIRRORS", "XDG_CACHE_HOME", "HOME",
)  # fmt: skip
GROUP_FILES = (
    "cgroup", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.max", "memory.limit_in_bytes",
)  # fmt: skip


def examine_system(files: dict, variables: dict, folder: Path) -> None:
    """Read what files of control groups and the environment say."""
    groups = _write_groups(files, folder)

    def read() -> None:
        core_quota(groups / "cgroup", groups)
        memory_limit(groups / "cgroup", groups)
        comm.launched_ranks()
        comm.launched_rank()

    with mock.patch.dict(os.environ, environment_of(variables)):
        if examine(read, MEBIBYTE) is not None:
            raise Violation("it refused to start because of what the system says")


def environment_of(variables: dict) -> dict[str, str]:
    """Those that this library reads."""
    return {name: as_given(word) for name, word in variables.items() if name in VARIABLES}


def as_given(word: Any) -> str:
    """A word as the system hands it over: bytes without zeros."""
    text = word if isinstance(word, str) else json.dumps(word)
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "surrogatepass")
    return os.fsdecode(encoded.replace(b"\0", b""))


def _write_groups(files: dict, folder: Path) -> Path:
    """The files of control groups, in a folder of their own."""
    groups = folder / "groups"
    groups.mkdir(exist_ok=True)
    for name in GROUP_FILES:
        place = groups / ("cpu" if "cfs" in name else "") / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(os.fsencode(as_given(files.get(name, ""))))
    return groups
