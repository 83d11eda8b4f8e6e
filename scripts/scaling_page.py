"""What a study of scaling found, as a page and a picture: measured jobs beside the model of `step_model`."""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import Spread, command_line, markdown_table, plain_axes, processor, three_digits, versions
from step_model import Link, Model, fit_link

from parallelcnn.comm import mpi_library
from parallelcnn.resources import usable_cores

MESSAGE_BYTES = [
    8,
    1 << 10,
    1 << 14,
    1 << 17,
    1 << 20,
    1 << 22,
]  # of which the Allreduce and the ping-pong are measured
PREDICTED_RANKS = [2**i for i in range(1, 11)]


class Job(NamedTuple):
    """What was found on so many ranks with so many threads each: medians over rounds."""

    ranks: int
    threads: int
    steps: dict[int, Spread]
    rounds: list[dict[str, Any]]

    @property
    def oversubscribed(self) -> bool:
        return self.rounds[0]["oversubscribed"]


class ScalingPage:
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

    def text(self) -> str:
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
