#!/usr/bin/env python3
"""Does it pay to hide the sum over ranks behind the backward pass? Measured here and now, with the time line of a step.

    mpirun -n 2 python scripts/overlap.py --data-dir FOLDER --out .
    srun python scripts/overlap.py --network CIFAR-size --out .

The backward pass goes from the last layer to the first, so the gradients of the dense layers, most of the message in
networks such as the paper's, are there long before those of the convolutions, and could travel meanwhile. Four ways to
take a training step, each rank on one thread:

* one sum after the backward pass: one Allreduce of the whole message, as the library does it;
* begun early: an Iallreduce of what the layers behind the last convolution contributed, as soon as it is there, waited
  for after the backward pass of the convolutions, whose gradients an Allreduce then sums;
* begun early, with tests: the same, and `request.Test()` after every kernel until the sum is done;
* no sum: not training, but the limit. Hiding cannot gain more than what lies between this and the first.

What begins early need not get on early. MPI promises that a nonblocking operation once begun will end, not that it
advances while the program computes (Wittmann et al. 2013, "Asynchronous MPI for the Masses", arXiv:1302.4280, section
1). Without a progress thread, what the processor has to do for the sum (copies, additions, the next message) is done
only inside calls of MPI. Test is such a call, and so is Wait, which otherwise has all of it left to do. A progress
thread does it at any time, and needs a core: MPICH starts one with MPIR_CVAR_ASYNC_PROGRESS=1, Intel MPI with
I_MPI_ASYNC_PROGRESS=1; both are off unless asked for. How much an interconnect does by itself, only a run there tells.

All four are run in turns, several rounds, from the same parameters. The time of a turn is the median of its steps, on
the rank where it is largest; figures are medians over rounds. The time line is rank 0's: medians, over all rounds, of
when something was done, from the beginning of the step. A rank that is early waits inside the sum for the others.
"""

import argparse
import math
import re
import statistics
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import (
    Spread,
    command_line,
    markdown_table,
    positive_integer,
    processor,
    require_packages,
    run_to_the_end,
    versions,
    write_page,
)
from networks import NETWORKS
from training_turns import LEARNING_RATE, random_dataset

import parallelcnn as pc
from parallelcnn.comm import (
    Communicator,
    abort_all_on_error,
    hosts,
    launched_rank,
    mpi_library,
    share_on_node,
    world,
)
from parallelcnn.data.sampler import grain, shuffle
from parallelcnn.errors import InputError, ParallelCNNError
from parallelcnn.layers import Conv2D
from parallelcnn.layers.base import Array, Call
from parallelcnn.layers.pooled_conv2d import PooledConv2D
from parallelcnn.losses import SoftmaxCrossEntropy
from parallelcnn.resources import usable_cores
from parallelcnn.training.compilation import compile_in_turns, compile_kernels
from parallelcnn.training.preparation import check_fit
from parallelcnn.training.reduction import compute_gradient
from parallelcnn.training.threads import one_blas_thread

SAMPLES_PER_RANK = 50  # the paper's minibatch of 100 on two ranks
TOLERANCE = 1e-5  # of the norm of the sum, which float32 rounds in another order where it is cut in two

# What the clock is read at, beside the end of each layer's backward pass.
FORWARD = "forward pass and loss done"
EARLY_CALLED = "early sum: begun"
EARLY_RETURNED = "early sum: the call has returned"
EARLY_DONE = "early sum: seen to be done"
LAST_CALLED = "sum of the rest, or of all: begun"
LAST_DONE = "sum of the rest, or of all: done"
UPDATE = "update done"


class Variant(NamedTuple):
    """A way to take a step."""

    name: str
    sums: bool = True
    early: bool = False
    tests: bool = False


VARIANTS = (
    Variant("one sum after the backward pass"),
    Variant("begun early", early=True),
    Variant("begun early, with tests", early=True, tests=True),
    Variant("no sum", sums=False),
)
PLAIN, *EARLY, LIMIT = VARIANTS


def main() -> int:
    options = _options()
    try:
        comm = world()
        with abort_all_on_error(comm), one_blas_thread():
            study = Study(options, comm)
            study.measure()
            if comm.rank == 0:
                study.report()
    except ParallelCNNError as error:  # every rank has it
        if launched_rank() == 0:
            print(f"overlap.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


class Cut:
    """Where the message is cut in two: at a layer, from which on gradients are summed early.

    Args:
        first: the number of that layer among those that run, counted from 1; None: the one behind the last convolution.

    Attributes:
        names: of the layers that run.
        first: that layer, counted from 0.
        ready: the layer with whose backward pass the last of the early gradients are there, counted from 0.
        start: where in the message their gradients begin; they go on to its end, the loss.
    """

    def __init__(self, network: pc.NetworkHandler, first: int | None = None) -> None:
        layers = [layer for layer, _ in network.as_it_runs]
        shapes = [layer.param_shapes(input_shape) for layer, input_shape in network.as_it_runs]
        self.names = [f"{number} {type(layer).__name__}" for number, layer in enumerate(layers, start=1)]
        if first is None:
            first = 2 + max(i for i, layer in enumerate(layers) if isinstance(layer, Conv2D | PooledConv2D))
        if not 2 <= first <= len(layers) or not any(shapes[first - 1 :]):
            last = max(number for number, own in enumerate(shapes, start=1) if own)
            raise InputError(
                f"--from-layer must lie in [2, {last}], of {', '.join(self.names)}, got {first}"
            ).together()
        self.first = first - 1
        self.ready = next(i for i in range(self.first, len(layers)) if shapes[i])
        self.start = sum(math.prod(shape) for own in shapes[: self.first] for shape in own.values())


class Stepper:
    """Takes training steps on this rank in any of the ways, and reads the clock as it goes.

    Args:
        samples: of each rank in a step; they must fit into one of the worker's blocks, as the sum follows the last.

    Attributes:
        times: of the steps since they were cleared: for each event, seconds from the beginning of the step.
    """

    def __init__(
        self, network: pc.NetworkHandler, cut: Cut, dataset: pc.Dataset, samples: int, comm: Communicator
    ) -> None:
        from mpi4py import MPI

        self.network, self.dataset, self.batch_size = network, dataset, samples * comm.size
        self.times: dict[str, list[float]] = defaultdict(list)
        self._comm, self._in_place = MPI.COMM_WORLD, MPI.IN_PLACE
        self._early, self._rest = network.message[cut.start :], network.message[: cut.start]
        self._request = MPI.REQUEST_NULL
        self._pending = False
        self._started = 0.0
        self._loss, self._optimizer = SoftmaxCrossEntropy(), pc.SGD(LEARNING_RATE)
        order = shuffle(len(dataset), 0, 1)
        starts = range(0, len(order) - self.batch_size + 1, self.batch_size)
        self._shares = [grain(order[start : start + self.batch_size], comm.rank, comm.size) for start in starts]
        self._share_number = 0

        compile_in_turns(comm, lambda: compile_kernels(network, dataset, self._optimizer, self._loss))
        self._gradient()  # lists the calls
        # The worker's own lists, for this number of samples, are what becomes different: all else is its code as it is.
        self._workspace = network.worker._workspaces.get(samples)
        self._calls = {variant: self._listed(variant, cut) for variant in VARIANTS}

    def _listed(self, variant: Variant, cut: Cut) -> list[list[Call]]:
        """The backward pass, last layer first, with what the variant does between its calls."""
        listed = []
        by_layer = self.network.worker._bind_backward(self._workspace)
        for number, plain in zip(reversed(range(len(cut.names))), by_layer, strict=True):
            calls: list[Call] = [] if listed else [partial(self._stamp, FORWARD)]
            for call in plain:
                calls.append(call)
                if variant.tests and number < cut.ready:
                    calls.append(self._test)
            calls.append(partial(self._stamp, cut.names[number]))
            if variant.early and number == cut.ready:
                calls.append(self._begin)
            listed.append(calls)
        return listed

    def _stamp(self, event: str) -> None:
        self.times[event].append(time.perf_counter() - self._started)

    def _begin(self) -> None:
        self._stamp(EARLY_CALLED)
        self._request = self._comm.Iallreduce(self._in_place, self._early)
        self._stamp(EARLY_RETURNED)
        self._pending = True

    def _test(self) -> None:
        if self._pending and self._request.Test():
            self._early_is_done()

    def _early_is_done(self) -> None:
        self._pending = False
        self._stamp(EARLY_DONE)

    def _gradient(self) -> None:
        compute_gradient(
            self.network.worker, self.dataset, self._shares[self._share_number], self.batch_size, self._loss
        )

    def step(self, variant: Variant) -> Array:
        """One training step; the message that it went along. Collective: every rank must call it."""
        self._workspace.calls["backward"] = self._calls[variant]
        self._started = time.perf_counter()
        self._gradient()
        if self._pending:
            self._request.Wait()
            self._early_is_done()
        if variant.sums:
            self._stamp(LAST_CALLED)
            self._comm.Allreduce(self._in_place, self._rest if variant.early else self.network.message)
            self._stamp(LAST_DONE)
        self.network.update(self._optimizer)
        self._stamp(UPDATE)
        self._share_number = (self._share_number + 1) % len(self._shares)
        return self.network.message

    def restart(self, params: Array) -> None:
        """Go back to these parameters and the first minibatch."""
        self.network.params[...] = params
        self._share_number = 0
        self.times.clear()


class Study:
    """All ways in turns, and what is said of them."""

    def __init__(self, options: argparse.Namespace, comm: Communicator) -> None:
        self.options, self.comm = options, comm
        if comm.size == 1:
            raise InputError(
                "one rank has nobody to sum with: start at least two, mpirun -n 2 python scripts/overlap.py"
            ).together()
        layers, input_shape = NETWORKS[options.network]
        self.network = pc.NetworkHandler(layers, input_shape, seed=0)
        self.cut = Cut(self.network, options.from_layer)
        block = self.network.worker.block_size
        self.samples: int = options.samples_per_rank or min(SAMPLES_PER_RANK, block)
        if self.samples > block:
            raise InputError(
                f"--samples-per-rank must be at most {block}, what this network takes at once, got {self.samples}"
            ).together()
        dataset = self._dataset(input_shape)
        self.stepper = Stepper(self.network, self.cut, dataset, self.samples, comm)
        self.seconds: dict[Variant, list[float]] = {variant: [] for variant in VARIANTS}
        self.times: dict[Variant, dict[str, list[float]]] = {variant: defaultdict(list) for variant in VARIANTS}
        self.hosts = hosts(comm)
        self.library = mpi_library().partition(",")[0]

    def _dataset(self, input_shape: tuple[int, ...]) -> pc.Dataset:
        least = self.samples * self.comm.size
        if not self.options.data_dir:
            return random_dataset(input_shape, max(least, 4096))
        dataset, _ = share_on_node(self.comm, lambda: pc.load_mnist(self.options.data_dir))
        try:
            check_fit(self.network, dataset)
        except InputError as error:
            raise error.together() from None
        if len(dataset) < least:
            raise InputError(
                f"{self.samples} samples on each of {self.comm.size} ranks are more than the {len(dataset)} samples "
                f"of {dataset.name}"
            ).together()
        return dataset

    def measure(self) -> None:
        """Run all rounds. Collective: every rank must call it."""
        start = self.network.params.copy()
        self._require_same_sums(start)
        for number in range(1, self.options.rounds + 1):
            for variant in VARIANTS:
                self.stepper.restart(start)
                self.comm.barrier()
                for _ in range(self.options.steps):
                    self.stepper.step(variant)
                times = self.stepper.times
                self.seconds[variant].append(max(self.comm.gather(statistics.median(times[UPDATE]))))
                for event, seconds in times.items():
                    self.times[variant][event].append(statistics.median(seconds))
            if self.comm.rank == 0:
                print(f"round {number} of {self.options.rounds} done", file=sys.stderr, flush=True)

    def _require_same_sums(self, start: Array) -> None:
        """Raise ParallelCNNError, on all ranks, unless a step sums the same in each way."""
        messages = []
        for variant in (PLAIN, *EARLY):
            self.stepper.restart(start)
            messages.append(self.stepper.step(variant).copy())
        for variant, message in zip(EARLY, messages[1:], strict=True):
            own = float(np.linalg.norm(message - messages[0]) / np.linalg.norm(messages[0]))
            difference = float(np.max(self.comm.gather(own)))
            if not difference <= TOLERANCE:
                raise ParallelCNNError(
                    f"the sum {variant.name} differs by {difference:.2g} of its norm, more than the {TOLERANCE:g} "
                    f"allowed: there is nothing to compare"
                ).together()

    def report(self) -> None:
        """Print the page, and write it and the picture into the folder asked for. On rank 0."""
        library = re.sub(r"[^a-z]+", "-", re.split(r"(?i) v", self.library)[0].lower()).strip("-")
        picture = ""
        if self.options.out:
            file = self.options.out / f"overlap-{library}"
            self.draw(file.with_suffix(".png"))
            picture = f"\n![time lines of a step]({file.name}.png)\n"
        page = self.page(picture)
        print(page)
        if self.options.out:
            write_page(file.with_suffix(".md"), page)

    def page(self, picture: str) -> str:
        """The page, Markdown."""
        message = self.network.message
        early = (message.size - self.cut.start) / message.size
        nodes = len(set(self.hosts))
        return f"""# Hiding the sum, {self.options.network} network, {self.library}

    mpirun -n {self.comm.size} python {command_line()}

{self.comm.size} ranks on {nodes} node{"s" if nodes > 1 else ""}, a thread each, {self.samples} samples each.
{processor()}; {len(usable_cores())} usable by rank 0. {versions("numpy", "numba", "mpi4py")}.
A turn is {self.options.steps} steps; medians of {self.options.rounds} rounds in turns, lowest and highest in brackets.
The message has {message.nbytes:,} bytes. Begun early: what layers {self.cut.first + 1} to {len(self.cut.names)} \
contribute, {early:.0%} of it.
{picture}
{self._step_table()}

{self._verdict()}

When rank 0 had done what, in microseconds from the beginning of the step:

{self._time_line_table()}
"""

    def _step_table(self) -> str:
        rows = []
        for variant in VARIANTS:
            microseconds = Spread.of(1e6 * seconds for seconds in self.seconds[variant])
            gain = "" if variant is PLAIN else self._gain(variant).text(0)
            rows.append((variant.name, microseconds.text(0), gain))
        return markdown_table(("", "a step [us]", "less than with one sum [us], within a round"), rows)

    def _gain(self, variant: Variant) -> Spread:
        """How many microseconds a step takes less than with one sum."""
        pairs = zip(self.seconds[PLAIN], self.seconds[variant], strict=True)
        return Spread.of(1e6 * (plain - other) for plain, other in pairs)

    def _verdict(self) -> str:
        best = max(EARLY, key=lambda variant: self._gain(variant).median)
        gain, limit = self._gain(best), self._gain(LIMIT)
        pairs = zip(self.seconds[PLAIN], self.seconds[best], strict=True)
        ahead = sum(other < plain for plain, other in pairs)
        if gain.low > 0:
            said = "Hiding pays here"
        elif gain.median > 0:
            said = "Hiding may pay here, by less than the noise"
        else:
            said = "Hiding does not pay here"
        return f"""{said}: the better way, {best.name}, was ahead in {ahead} of {self.options.rounds} rounds.
No way of hiding could gain more than a step without any sum does: {limit.text(0)} us."""

    def _events(self, variant: Variant) -> list[str]:
        """What happens in a step of this kind, in order of its median time."""
        medians = self._medians(variant)
        return sorted(medians, key=lambda event: medians[event])

    def _medians(self, variant: Variant) -> dict[str, float]:
        return {event: 1e6 * statistics.median(seconds) for event, seconds in self.times[variant].items()}

    def _time_line_table(self) -> str:
        medians = [self._medians(variant) for variant in VARIANTS]
        backward = list(reversed(self.cut.names))
        place = backward.index(self.cut.names[self.cut.ready]) + 1
        early, last = [EARLY_CALLED, EARLY_RETURNED], [EARLY_DONE, LAST_CALLED, LAST_DONE, UPDATE]
        rows = []
        for event in (FORWARD, *backward[:place], *early, *backward[place:], *last):
            name = f"backward pass of {event} done" if event in backward else event
            rows.append((name, *(f"{times[event]:.0f}" if event in times else "" for times in medians)))
        return markdown_table(("", *(variant.name for variant in VARIANTS)), rows)

    def draw(self, file: Path) -> None:
        """The time lines under each other: what rank 0 does, and below it the sums under way."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.patches import Patch

        colors = {"computes, and tests": "#8fb8de", "is inside MPI": "#d1495b", "a sum is under way": "#edae49"}
        figure, panel = pyplot.subplots(figsize=(11, 4.6), layout="constrained")
        whole = max(self._medians(variant)[UPDATE] for variant in VARIANTS)
        for row, variant in enumerate(VARIANTS):
            medians = self._medians(variant)
            before = 0.0
            for event in self._events(variant):
                if event == EARLY_DONE and before < medians[self.cut.names[0]]:
                    continue  # seen by a test: not waited for
                inside_mpi = event in (EARLY_RETURNED, EARLY_DONE, LAST_DONE)
                color = colors["is inside MPI" if inside_mpi else "computes, and tests"]
                self._draw_piece(panel, row, before, medians[event], color)
                label = _label(event)
                if medians[event] - before > 0.0078 * len(label) * whole:
                    middle = (before + medians[event]) / 2
                    panel.text(middle, row, label, ha="center", va="center", fontsize=8)
                before = medians[event]
            for begun, done in ((EARLY_CALLED, EARLY_DONE), (LAST_CALLED, LAST_DONE)):
                if done in medians:
                    panel.broken_barh(
                        [(medians[begun], medians[done] - medians[begun])],
                        (row + 0.3, 0.12),
                        color=colors["a sum is under way"],
                    )
        panel.set_yticks(range(len(VARIANTS)), [variant.name for variant in VARIANTS])
        panel.invert_yaxis()
        panel.set(
            title=f"{self.options.network} network, {self.comm.size} ranks, {self.library}: a step on rank 0, medians",
            xlabel="time from the beginning of the step [us]",
            xlim=(0, 1.01 * whole),
        )
        patches = [Patch(color=color, label=label) for label, color in colors.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
        figure.savefig(file, dpi=120)

    def _draw_piece(self, panel: Any, row: int, start: float, end: float, color: str) -> None:
        panel.broken_barh([(start, end - start)], (row - 0.3, 0.55), facecolor=color, edgecolor="white", linewidth=0.6)


def _label(event: str) -> str:
    """Short, for the picture."""
    known = {FORWARD: "forward, loss", UPDATE: "update", EARLY_DONE: "wait", LAST_DONE: "sum", EARLY_RETURNED: "begin"}
    return known.get(event, event)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="paper", choices=NETWORKS, help="(default: paper)")
    parser.add_argument("--data-dir", metavar="DIR", help="train on the MNIST that lies there; otherwise on noise")
    parser.add_argument(
        "--samples-per-rank",
        type=positive_integer,
        metavar="N",
        help=f"in a step (default: {SAMPLES_PER_RANK}, or as many as the network takes at once)",
    )
    parser.add_argument(
        "--from-layer",
        type=positive_integer,
        metavar="NUMBER",
        help="begin early with the gradients from this layer on (default: the one behind the last convolution)",
    )
    parser.add_argument("--steps", type=positive_integer, default=600, help="in a turn (default: 600)")
    parser.add_argument("--rounds", type=positive_integer, default=7, help="(default: 7)")
    parser.add_argument(
        "--out", type=_folder, metavar="FOLDER", help="write overlap-LIBRARY.md and .png there; needs matplotlib"
    )
    options = parser.parse_args()
    require_packages(parser, *(["matplotlib"] if options.out else []))
    return options


def _folder(text: str) -> Path:
    """For argparse: a folder that is there, or all the measuring would be for nothing."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder that exists, got {text!r}")
    return Path(text)


if __name__ == "__main__":
    run_to_the_end(main)
