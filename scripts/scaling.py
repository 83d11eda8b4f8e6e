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
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mpi4py
import numpy as np
from measuring import (
    Spread,
    command_line,
    file_to_write,
    markdown_table,
    plain_axes,
    positive_integer,
    positive_number,
    processor,
    require_packages,
    run_to_the_end,
    seconds_of,
    three_digits,
    versions,
    write_page,
)
from networks import NETWORKS
from step_model import Link, Model, fit_link
from training_turns import our_training, random_dataset

import parallelcnn as pc
from parallelcnn.comm import Communicator, abort_all_on_error, hosts, mpi_library, mpirun, world
from parallelcnn.threads import one_blas_thread, usable_cores

MESSAGE_BYTES = [8, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22]
PREDICTED_RANKS = [2**i for i in range(1, 11)]


def main() -> int:
    options = _options()
    if options.job:
        run_job(options)
        return 0
    # This process is none of the ranks: MPI is asked for its name, and not started.
    mpi4py.rc.initialize = False
    jobs = run_jobs(options)
    study = Study(options, jobs)
    page = study.page()
    print(page)
    if options.out:
        write_page(options.out, page)
    if options.figure:
        study.draw(options.figure)
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


class Job(NamedTuple):
    """What was found on so many ranks with so many threads each: medians over rounds."""

    ranks: int
    threads: int
    steps: dict[int, Spread]
    rounds: list[dict[str, Any]]

    @property
    def oversubscribed(self) -> bool:
        return self.rounds[0]["oversubscribed"]


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


# ---- the study


class Study:
    """Measured jobs beside the model: a page and a picture."""

    def __init__(self, options: argparse.Namespace, jobs: list[Job]) -> None:
        self.options, self.jobs = options, jobs
        self.message_bytes: int = jobs[0].rounds[0]["message_bytes"]
        addition = statistics.median(found["addition"] for job in jobs for found in job.rounds)
        self.links: dict[str, Link] = {}
        self.link_ranks: dict[str, Job] = {}
        for link in ("node", "network"):
            # Where ranks have no core each, a message waits for the receiver's turn.
            having = [job for job in jobs if link in job.rounds[0]["ping_pong"]]
            for job in sorted(having, key=lambda job: job.oversubscribed)[:1]:
                sizes = job.rounds[0]["ping_pong"][link]
                self.links[link] = fit_link(
                    {size: [found["ping_pong"][link][size] for found in job.rounds] for size in sizes}
                )
                self.link_ranks[link] = job
        if options.interconnect:
            latency, rate = options.interconnect
            self.links["network"] = Link(latency * 1e-6, 1e-9 / rate)
        fitting = [job.rounds[0]["hosts"] for job in jobs if not job.oversubscribed] or [jobs[0].rounds[0]["hosts"]]
        self.ranks_per_node: int = options.ranks_per_node or max(max(map(hosts.count, hosts)) for hosts in fitting)
        node = self.links.get("node") or self.links["network"]
        network = self.links.get("network") or node
        self.models = {
            threads: Model(
                {size: spread.median for size, spread in self._job(1, threads).steps.items()},
                self.message_bytes,
                addition,
                node,
                network,
                self.ranks_per_node if "network" in self.links else sys.maxsize,
            )
            for threads in options.threads
        }

    def _job(self, ranks: int, threads: int) -> Job:
        return next(job for job in self.jobs if (job.ranks, job.threads) == (ranks, threads))

    def kinds(self, threads: int) -> list[tuple[str, Callable[[int], int]]]:
        """Name of each kind of scaling, and its minibatch on so many ranks."""
        per_rank = self.options.samples_per_core * threads
        return [
            *((f"strong, minibatch {size}", lambda ranks, size=size: size) for size in self.options.batch_sizes),
            (f"weak, {per_rank} samples a rank", lambda ranks: per_rank * ranks),
        ]

    def page(self) -> str:
        """The page, Markdown."""
        options = self.options
        picture = ""
        if options.figure and options.out:
            picture = f"\n![time of a step over ranks]({os.path.relpath(options.figure, options.out.parent)})\n"
        return f"""# Scaling, {options.network} network

    {command_line()}

{processor()}; {len(usable_cores())} cores usable. {versions("numpy", "numba", "mpi4py")}, {mpi_library()}.
At most {self._nodes()}. Medians of {options.rounds} rounds in turns, lowest and highest in brackets.
{self._what_could_be_measured()}
{picture}
## What the model was given

{self._inputs()}

## Measured, and what the model says

The model was fitted to none of these times but those on one rank. Speed-up and efficiency are against one rank;
of weak scaling, in samples per second.

{self._measured_table()}

## Predicted

{self._assumptions()}

{self._predicted_table()}

## The Allreduce alone

{self._allreduce_table()}
"""

    def _nodes(self) -> str:
        most = max((job.rounds[0]["hosts"] for job in self.jobs), key=lambda hosts: (len(set(hosts)), len(hosts)))
        return f"{len(most)} ranks on {len(set(most))} {_plural(len(set(most)), 'node')}"

    def _what_could_be_measured(self) -> str:
        fitting, over = (
            ", ".join(f"{job.ranks} x {job.threads}" for job in self.jobs if job.oversubscribed == oversubscribed)
            for oversubscribed in (False, True)
        )
        text = f"Measured with a core for each thread, ranks x threads: {fitting or 'none'}."
        if over:
            text += (
                f" OVERSUBSCRIBED, with more threads than\ncores, and marked as such: {over}; such times say that it "
                f"works, and nothing about scaling."
            )
        return f"{text}\nAll larger numbers are predictions."

    def _inputs(self) -> str:
        lines = []
        for threads, model in self.models.items():
            pairs = list(zip(model.compute_sizes, model.compute_seconds, strict=True))
            worst = max(abs(model.fixed + model.per_sample * n - t) / t for n, t in pairs)
            points = ", ".join(f"{n}: {three_digits(1e3 * t)}" for n, t in pairs)
            lines.append(
                f"* Computing a step on one rank with {threads} {_plural(threads, 'thread')}, samples: ms. {points}. "
                f"As a straight line: {1e6 * model.fixed:.0f} us + {1e6 * model.per_sample:.3g} us per sample, off by "
                f"{worst:.0%} at worst; the model interpolates instead."
            )
        for name, link in self.links.items():
            where = {"node": "within a node", "network": "between nodes"}[name]
            source = "assumed, by --interconnect"
            if name in self.link_ranks and not (name == "network" and self.options.interconnect):
                job = self.link_ranks[name]
                source = "MPI ping-pong" + (", OVERSUBSCRIBED" if job.oversubscribed else "")
            rate = 1e-9 / link.per_byte if link.per_byte else math.inf
            lines.append(f"* Message {where}: {1e6 * link.latency:.3g} us + bytes at {rate:.3g} GB/s ({source}).")
        addition = next(iter(self.models.values())).addition
        lines.append(f"* Addition of float32: {1e-9 / addition:.3g} GB/s.")
        lines.append(f"* The message, gradients and loss: {self.message_bytes:,} bytes.")
        return "\n".join(lines)

    def _assumptions(self) -> str:
        if "network" not in self.links:
            return (
                "Nothing was measured between nodes: this says what would be if every rank could be reached as quickly "
                "as the\nranks of this node (--interconnect MICROSECONDS GB_PER_S, with --ranks-per-node, assumes a "
                "network)."
            )
        kind = "assumed" if self.options.interconnect else "measured"
        return f"With {self.ranks_per_node} {_plural(self.ranks_per_node, 'rank')} a node and the {kind} network."

    def _measured_table(self) -> str:
        header = (
            "scaling",
            "ranks x threads",
            "minibatch",
            "measured [ms per step]",
            "model [ms]",
            "measured / model",
            "speed-up",
            "efficiency",
            "",
        )
        rows = []
        for threads, model in self.models.items():
            for kind, batch_size in self.kinds(threads):
                for job in self.jobs:
                    if job.threads == threads:
                        spread = job.steps[batch_size(job.ranks)]
                        one = self._job(1, self.options.threads[0])
                        alone = one.steps[batch_size(1)].median if batch_size(1) in one.steps else math.nan
                        more = batch_size(job.ranks) / batch_size(1)
                        speed_up = more * alone / spread.median
                        predicted = model.step(batch_size(job.ranks), job.ranks)
                        rows.append(
                            (
                                kind,
                                f"{job.ranks} x {threads}",
                                str(batch_size(job.ranks)),
                                Spread(*(1e3 * value for value in spread)).text(3),
                                f"{1e3 * predicted:.3f}",
                                f"{spread.median / predicted:.2f}",
                                f"{speed_up:.2f}",
                                f"{speed_up / (job.ranks * threads / self.options.threads[0]):.0%}",
                                "OVERSUBSCRIBED" if job.oversubscribed else "",
                            )
                        )
        return markdown_table(header, rows)

    def _predicted_table(self) -> str:
        threads, model = next(iter(self.models.items()))
        kinds = self.kinds(threads)
        header = ["ranks", "Allreduce [ms]"]
        for kind, _ in kinds:
            header += [f"{kind} [ms per step]", "speed-up"]
        rows = []
        for ranks in PREDICTED_RANKS:
            row = [str(ranks), f"{1e3 * model.allreduce(ranks):.3f}"]
            for _, batch_size in kinds:
                step = model.step(batch_size(ranks), ranks)
                alone = model.step(batch_size(1), 1)
                row += [f"{1e3 * step:.3f}", f"{batch_size(ranks) / batch_size(1) * alone / step:.1f}"]
            rows.append(row)
        return markdown_table(header, rows)

    def _allreduce_table(self) -> str:
        jobs = [job for job in self.jobs if job.ranks > 1 and job.threads == self.options.threads[0]]
        model = self.models[self.options.threads[0]]
        header = ["bytes"]
        for job in jobs:
            mark = ", OVERSUBSCRIBED" if job.oversubscribed else ""
            header += [f"{job.ranks} ranks{mark}: measured [us]", "model [us]"]
        rows = []
        for size in sorted({*MESSAGE_BYTES, self.message_bytes}):
            row = [f"{size:,}"]
            for job in jobs:
                spread = Spread.of(1e6 * found["allreduce"][str(size)] for found in job.rounds)
                row += [spread.text(1), f"{1e6 * model.allreduce(job.ranks, size):.1f}"]
            rows.append(row)
        return markdown_table(header, rows)

    def draw(self, file: Path) -> None:
        """Time of a step over ranks: measured points, and the model's curves."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        ranks = [1, *PREDICTED_RANKS]
        for threads, model in self.models.items():
            for kind, batch_size in self.kinds(threads):
                panel = panels[1 if kind.startswith("weak") else 0]
                label = f"{kind}, {threads} {_plural(threads, 'thread')}" if len(self.models) > 1 else kind
                predicted = [1e3 * model.step(batch_size(number), number) for number in ranks]
                (line,) = panel.loglog(ranks, predicted, "-", label=f"{label}: model")
                for over in (False, True):
                    jobs = [job for job in self.jobs if job.threads == threads and job.oversubscribed == over]
                    if jobs:
                        spreads = [job.steps[batch_size(job.ranks)] for job in jobs]
                        medians = 1e3 * np.array([spread.median for spread in spreads])
                        ends = [[1e3 * (s.median - s.low), 1e3 * (s.high - s.median)] for s in spreads]
                        panel.errorbar(
                            [job.ranks for job in jobs],
                            medians,
                            np.transpose(ends),
                            fmt="o",
                            color=line.get_color(),
                            markerfacecolor="white" if over else line.get_color(),
                            label="measured, oversubscribed" if over else "measured",
                        )
        for panel, title in zip(panels, ("strong scaling", "weak scaling"), strict=True):
            panel.set(title=title, xlabel="ranks", ylabel="time of a step [ms]")
            if title == "weak scaling":  # at best a horizontal line, whose height a logarithm would exaggerate
                panel.set_yscale("linear")
                panel.set_ylim(bottom=0)
            plain_axes(panel, ranks)
            panel.legend(fontsize=8)
        figure.savefig(file, dpi=120)


def _plural(number: int, what: str) -> str:
    return what if number == 1 else f"{what}s"


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
