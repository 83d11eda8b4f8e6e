#!/usr/bin/env python3
"""What a job of scripts/same_bits.py measures: steps with and without reproducible sums, checkpoints, and checks.

    mpirun -n 2 python scripts/same_bits_cost.py --threads 1 --batch-sizes 100 --grains 2 4 --found found.json

All variants take turns in one process group, on the same network and the same minibatches, so that what disturbs the
machine disturbs them alike. A turn is some hundred steps; its figure is their median.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import positive_integer, positive_number, run_to_the_end, seconds_of

import parallelcnn as pc
from parallelcnn.comm import Communicator, abort_all_on_error, world
from parallelcnn.data import load_data
from parallelcnn.data.sampler import Sampler
from parallelcnn.losses import SoftmaxCrossEntropy
from parallelcnn.resilience.replica_check import find_mismatch
from parallelcnn.resilience.watchdog import Watch
from parallelcnn.training.compilation import compile_in_turns, compile_kernels
from parallelcnn.training.history import History
from parallelcnn.training.preparation import facts_of
from parallelcnn.training.reduction import Summation, summation_of
from parallelcnn.training.thread_pool import Team
from parallelcnn.training.threads import one_blas_thread

FLOATS, WATCHED = "floats", "floats, watched"
_FEWEST_STEPS = 3
_LEARNING_RATE = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures on every rank of a job; started by scripts/same_bits.py.")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--threads", type=positive_integer, default=1)
    parser.add_argument("--batch-sizes", type=positive_integer, nargs="+", default=[100])
    parser.add_argument("--grains", type=positive_integer, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seconds", type=positive_number, default=0.3, help="of a turn")
    parser.add_argument("--rounds", type=positive_integer, default=7)
    parser.add_argument("--folder", type=Path, default=Path(), help="where checkpoints are tried out")
    parser.add_argument("--found", type=Path, required=True, help="the file for what was found")
    options = parser.parse_args()

    comm = world()
    train_set, test_set = load_data(options.data, options.data_dir)
    network = pc.NetworkHandler(pc.paper(), train_set.input_shape, seed=0)
    with abort_all_on_error(comm), one_blas_thread(), Team(network.workers(options.threads)) as team:
        found: dict[str, Any] = {
            "steps": {
                batch_size: step_seconds(comm, network, team, train_set, batch_size, options)
                for batch_size in options.batch_sizes
            },
            "check": check_seconds(comm, network),
            "train_samples": len(train_set),
        }
        if comm.rank == 0:
            losses = len(train_set) // options.batch_sizes[0]
            facts = facts_of(train_set, test_set, network, loss=pc.SoftmaxCrossEntropy())
            found["checkpoint"] = checkpoint_seconds(network, facts, losses, options.folder, options.rounds)
            options.found.write_text(json.dumps(found))
        comm.barrier()
    return 0


def step_seconds(
    comm: Communicator,
    network: pc.NetworkHandler,
    team: Team,
    train_set: pc.Dataset,
    batch_size: int,
    options: argparse.Namespace,
) -> dict[str, list[float]]:
    """For each way to sum, the median time of a step in each round on rank 0, which waits for the others [s].

    Collective: every rank of `comm` must call it.
    """
    loss, optimizer = SoftmaxCrossEntropy(), pc.SGD(_LEARNING_RATE)
    sampler = Sampler(len(train_set), batch_size, 0)
    seen = itertools.count(0, batch_size)
    start = network.params.copy()

    def steps_of(summation: Summation) -> Callable[[], None]:
        def step() -> None:
            _, minibatch = sampler.after(next(seen))
            comm.activity = "taking a step"
            summation.compute(minibatch, comm, leave=False)
            network.update(optimizer)

        return step

    summations: dict[str, int | None] = {FLOATS: None}
    if comm.size > 1:  # on one rank there is nothing to watch
        summations[WATCHED] = None
    summations |= {str(grains): grains for grains in options.grains}
    variants = {}
    for name, grains in summations.items():
        compile_in_turns(comm, lambda grains=grains: compile_kernels(network, train_set, optimizer, loss, grains))  # type: ignore[misc]
        step = steps_of(summation_of(network, team, train_set, loss, grains))
        first = statistics.median(seconds_of(step, _FEWEST_STEPS))
        steps = max(_FEWEST_STEPS, round(options.seconds / first))
        variants[name] = step, comm.gather(steps)[0]
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, (step, steps) in variants.items():
            network.set_state({"params": start})
            with Watch(comm) if name == WATCHED else contextlib.nullcontext():
                comm.barrier()
                step()
                found[name].append(statistics.median(seconds_of(step, steps)))
    return found


def check_seconds(comm: Communicator, network: pc.NetworkHandler) -> list[float]:
    """How long it takes to find that all ranks hold the same, several times [s]; empty on one rank. Collective."""
    if comm.size == 1:
        return []

    def check() -> None:
        mismatch = find_mismatch(comm, network)
        if mismatch is not None:
            raise mismatch

    check()
    return seconds_of(check, 21)


def checkpoint_seconds(
    network: pc.NetworkHandler, facts: dict[str, Any], losses: int, folder: Path, rounds: int
) -> list[float]:
    """How long checkpoints take after an epoch's minibatches, as training saves them [s]."""
    history = History(losses=[0.5] * losses)
    times = []
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        checkpoints = pc.CheckpointFolder(Path(inside) / "checkpoints")
        for _ in range(3 * rounds):
            history.losses.append(0.5)
            history.samples_seen += 1
            started = time.perf_counter()
            checkpoints.save(pc.Checkpoint(facts, network.state, history))
            times.append(time.perf_counter() - started)
        saved = checkpoints.newest()
        if saved is None or not np.array_equal(saved.state["params"], network.params):
            raise pc.ParallelCNNError(f"no checkpoint was saved in {folder}: there is nothing to time")
    return times[1:]


if __name__ == "__main__":
    run_to_the_end(main)
