#!/usr/bin/env python3
"""Strong and weak scaling over ranks x threads, on any cluster, beside a model of the time of a training step.

    scripts/scaling.py --ranks 1 2 4 --out scripts/results/scaling.md --figure scripts/results/scaling.png
    sbatch --nodes=8 --ntasks-per-node=16 --wrap "scripts/scaling.py --ranks 1 2 4 8 16 32 64 128 --out scaling.md"

For each number of ranks it starts a job: inside SLURM with srun, elsewhere with mpirun. Each job trains a network on
random images: strong scaling shares a minibatch of fixed size among the ranks, weak scaling gives each core as many
samples however many there are. Jobs are run in turns, several rounds; figures are medians over rounds.

The model, which knows nothing of those times on several ranks, is that of `step_model`. It is given the times of one
rank, and latency and bandwidth of an MPI ping-pong.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mpi4py
import numpy as np
from measuring import (
    Spread,
    file_to_write,
    positive_integer,
    positive_number,
    require_packages,
    run_to_the_end,
    seconds_of,
    write_page,
)
from networks import NETWORKS
from scaling_page import MESSAGE_BYTES, Job, ScalingPage
from training_turns import our_training, random_dataset

import parallelcnn as pc
from parallelcnn.comm import Communicator, abort_all_on_error, hosts, mpi_library, mpirun, world
from parallelcnn.training.threads import one_blas_thread


def main() -> int:
    options = _options()
    if options.job:
        run_job(options)
        return 0
    # This process is none of the ranks: MPI is asked for its name, and not started.
    mpi4py.rc.initialize = False
    jobs = run_jobs(options)
    page = ScalingPage(options, jobs)
    print(page.text())
    if options.out:
        write_page(options.out, page.text())
    if options.figure:
        page.draw(options.figure)
    return 0


# ---- a job: some ranks with some threads each


def run_job(options: argparse.Namespace) -> None:
    """On every rank of a job: measure; rank 0 writes what it found as JSON. Times are in seconds."""
    comm = world()
    layers, input_shape = NETWORKS[options.network]
    network = pc.NetworkHandler(layers, input_shape, seed=0)
    with abort_all_on_error(comm), one_blas_thread():
        found: dict[str, Any] = {
            "hosts": hosts(comm),
            "oversubscribed": _is_oversubscribed(comm, options.threads[0]),
            "message_bytes": network.message.nbytes,
            "steps": {},
        }
        for batch_size in options.batch_sizes:
            train_set = random_dataset(input_shape, max(3 * batch_size, 4096))
            samples, train = our_training(network, train_set, batch_size, options.seconds, comm, options.threads[0])
            found["steps"][batch_size] = train() / (samples // batch_size)
        found["allreduce"] = _allreduce_seconds(comm, [*MESSAGE_BYTES, network.message.nbytes])
        found["ping_pong"] = _ping_pongs(comm)
        found["addition"] = _addition_seconds_per_byte()
    if comm.rank == 0:
        options.job.write_text(json.dumps(found))


def _is_oversubscribed(comm: Communicator, threads: int) -> bool:
    """Whether the threads of the ranks of some node are more than the cores that they may use."""
    cores = comm.gather(sorted(os.sched_getaffinity(0)))
    here = comm.ranks_on_node()
    return any(comm.gather(threads * len(here) > len(set().union(*(cores[rank] for rank in here)))))


def _allreduce_seconds(comm: Communicator, sizes: list[int]) -> dict[int, float]:
    """Median time of the sum over ranks, as training does it, by bytes."""
    found = {}
    for size in sizes if comm.size > 1 else []:
        array = np.zeros(size // 4, np.float32)
        repeats = 20 if size > 1 << 18 else 200
        comm.barrier()
        found[size] = statistics.median(seconds_of(lambda array=array: comm.sum_over_ranks(array), repeats))  # type: ignore[misc]
    return found


def _ping_pongs(comm: Communicator) -> dict[str, dict[int, float]]:
    """Half of a round trip by bytes, between rank 0 and the next rank on its node, and the first on another."""
    nodes = comm.gather(comm.ranks_on_node())
    partners = {
        "node": next(iter(nodes[0][1:2]), None),
        "network": next((rank for rank in range(comm.size) if rank not in nodes[0]), None),
    }
    found: dict[str, dict[int, float]] = {}
    for link, partner in partners.items():
        if partner is None:
            continue
        if comm.rank in (0, partner):
            found[link] = _ping_pong(comm.rank == 0, partner if comm.rank == 0 else 0)
        comm.barrier()
    return found


def _ping_pong(first: bool, partner: int) -> dict[int, float]:
    from mpi4py import MPI

    found = {}
    for size in MESSAGE_BYTES:
        array = np.zeros(size, np.uint8)

        def there_and_back(array: np.ndarray = array) -> None:
            for receives in (not first, first):
                if receives:
                    MPI.COMM_WORLD.Recv(array, partner)
                else:
                    MPI.COMM_WORLD.Send(array, partner)

        found[size] = statistics.median(seconds_of(there_and_back, 20 if size > 1 << 18 else 200)) / 2
    return found


def _addition_seconds_per_byte() -> float:
    a, b = np.zeros((2, 1 << 15), np.float32)
    return statistics.median(seconds_of(lambda: np.add(a, b, out=a), 200)) / a.nbytes


# ---- all jobs


def run_jobs(options: argparse.Namespace) -> list[Job]:
    """Run all jobs, every one of them once a round."""
    wanted = [(ranks, threads) for threads in options.threads for ranks in options.ranks]
    rounds: dict[tuple[int, int], list[dict[str, Any]]] = {job: [] for job in wanted}
    for number in range(1, options.rounds + 1):
        for ranks, threads in wanted:
            rounds[ranks, threads].append(_start_job(options, ranks, threads))
            print(f"round {number} of {options.rounds}: {ranks} x {threads} done", file=sys.stderr, flush=True)
    jobs = []
    for (ranks, threads), found in rounds.items():
        steps = {size: Spread.of(one["steps"][size] for one in found) for size in found[0]["steps"]}
        jobs.append(Job(ranks, threads, {int(size): spread for size, spread in steps.items()}, found))
    return jobs


def _start_job(options: argparse.Namespace, ranks: int, threads: int) -> dict[str, Any]:
    """Run one job and read what it found."""
    strong, weak = options.batch_sizes, options.samples_per_core * ranks * threads
    batch_sizes = {*strong, weak}
    if ranks == 1:
        batch_sizes |= set(_compute_sizes(options))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # which other nodes see too
        found = Path(folder) / "found.json"
        command = [
            *_launcher(options, ranks, threads),
            *(sys.executable, __file__, "--job", str(found), "--network", options.network),
            *("--threads", str(threads), "--seconds", str(options.seconds), "--batch-sizes"),
            *map(str, sorted(batch_sizes)),
        ]
        done = subprocess.run(command, stdout=subprocess.DEVNULL)
        if done.returncode != 0 or not found.exists():
            sys.exit(f"scaling.py: {ranks} ranks failed (exit code {done.returncode}): {shlex.join(command)}")
        return json.loads(found.read_text())


def _launcher(options: argparse.Namespace, ranks: int, threads: int) -> list[str]:
    if options.launcher:
        return [*shlex.split(options.launcher), "-n", str(ranks)]
    is_mpich = "mpich" in mpi_library().lower()
    if "SLURM_JOB_ID" in os.environ:
        # SLURM's own protocol with MPI must be the library's, or each rank is alone in its world.
        return ["srun", f"--mpi={'pmi2' if is_mpich else 'pmix'}", "-n", str(ranks), f"--cpus-per-task={threads}"]
    if ranks == 1:
        return []
    # Open MPI would bind a rank to one core, and refuse more ranks than cores.
    return [mpirun(), "-n", str(ranks), *([] if is_mpich else ["--bind-to", "none", "--oversubscribe"])]


def _compute_sizes(options: argparse.Namespace) -> list[int]:
    """Sizes of a rank's share for which computing is measured: 1, 2, 4, ... and the largest."""
    largest = max(*options.batch_sizes, options.samples_per_core * max(options.threads))
    return [*(2**i for i in range(largest.bit_length()) if 2**i < largest), largest]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Strong and weak scaling, measured and modelled.")
    parser.add_argument("--network", default="paper", choices=NETWORKS, help="(default: paper)")
    parser.add_argument("--ranks", type=positive_integer, nargs="+", default=[1, 2], metavar="P", help="(default: 1 2)")
    parser.add_argument(
        "--threads", type=positive_integer, nargs="+", default=[1], metavar="T", help="per rank (default: 1)"
    )
    parser.add_argument(
        "--batch-sizes", type=positive_integer, nargs="+", default=[100, 1600], metavar="N", help="(100 1600)"
    )
    parser.add_argument(
        "--samples-per-core", type=positive_integer, default=50, metavar="N", help="for weak scaling (default: 50)"
    )
    parser.add_argument("--launcher", help="what starts ranks, such as 'srun --mpi=pmi2' (default: see above)")
    parser.add_argument(
        "--interconnect",
        type=positive_number,
        nargs=2,
        metavar=("US", "GB_PER_S"),
        help="assume this network between nodes",
    )
    parser.add_argument(
        "--ranks-per-node", type=positive_integer, metavar="P", help="of predictions (default: as measured)"
    )
    parser.add_argument("--rounds", type=positive_integer, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=positive_number, default=0.2, help="length of a turn (default: 0.2)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE", help="write the page, Markdown, to FILE")
    parser.add_argument(
        "--figure", type=file_to_write, metavar="FILE", help="draw the picture, PNG, to FILE; needs matplotlib"
    )
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    require_packages(parser, *(["matplotlib"] if options.figure else []))
    options.ranks = sorted({1, *options.ranks})  # one rank tells what computing takes
    return options


if __name__ == "__main__":
    run_to_the_end(main)
