#!/usr/bin/env python3
"""Measure training across several hosts, which are emulated on this machine: when do a second and a fourth pay off?

    scripts/benchmarks/hosts.py --out scripts/benchmarks/results/hosts.md

Needs root, for network namespaces (`emulated_hosts.py`); removes them at the end. Each round starts a job on 1 host, on
2 hosts and so on (`hosts_rank.py`). A host computes on one core, with one rank of one thread.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from emulated_hosts import EmulatedHosts, ended_by_signals, why_impossible
from networks import NETWORKS
from pages import (
    Spread,
    file_to_write,
    markdown_table,
    page_head,
    positive_integer,
    positive_number,
    print_page,
    run_to_the_end,
    three_digits,
)
from processes import ProgramFailed, run

import parallelcnn as pc
from parallelcnn.wording import plural

PROGRAM = Path(__file__).with_name("hosts_rank.py")
_LINKS = ("25us-10Gb/s", "100us-1Gb/s")
_NETWORKS = ("paper", "CIFAR-size", "ResNet-20")
_DILATION = 20  # of the Allreduce alone, for each rank on a core
_PERIOD_SECONDS, _LONGEST_PERIOD = 0.1, 40  # computing between two Allreduces, at least
_OVERLAPPED = 400  # samples

Name = tuple[Any, ...]
Round = dict[Name, Any]


class Link(NamedTuple):
    """The link of each host to the switch: one-way latency between two hosts [s], and rate [Gb/s]."""

    latency: float
    gigabits: float

    def __str__(self) -> str:
        return f"{self.latency * 1e6:g} us, {self.gigabits:g} Gb/s"


def link(text: str) -> Link:
    """For argparse: such as 25us-10Gb/s."""
    latency, _, rate = text.partition("us-")
    try:
        return Link(positive_number(latency) * 1e-6, positive_number(rate.removesuffix("Gb/s")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be a latency and a rate such as 25us-10Gb/s, got {text!r}") from None


def main() -> int:
    options = _options()
    with ended_by_signals():
        impossible = why_impossible()
    if impossible:
        print(f"hosts.py: hosts cannot be emulated here: {impossible}", file=sys.stderr)
        return 2
    rounds: list[Round] = []
    about: dict[str, Any] = {}
    try:
        with ended_by_signals():
            for number in range(1, options.rounds + 1):
                found = run_job(1, compute_cases(options), about)
                for hosts in options.hosts:
                    found |= run_job(hosts, network_cases(options, hosts, found), about)
                    print(f"round {number} of {options.rounds}: {hosts} hosts done", file=sys.stderr, flush=True)
                rounds.append(found)
    except ProgramFailed as failed:
        print(f"hosts.py: {failed}", file=sys.stderr)
        return 1
    print_page(page(options, rounds, about), options.out)
    return 0


# ---- what is measured


def minibatches(options: argparse.Namespace, hosts: int) -> list[int]:
    """Sizes of minibatches: those of strong scaling, and that of weak scaling."""
    return sorted({*options.batch_sizes, options.samples_per_host * hosts})


def grid(options: argparse.Namespace) -> list[int]:
    """Numbers of samples for which the time on one core is measured; times between are interpolated."""
    most = max(minibatches(options, max(options.hosts)))
    return sorted({1, *(most // 2**i for i in range(8) if most // 2**i > 1), *minibatches(options, 1)})


def compute_cases(options: argparse.Namespace) -> dict[Name, dict[str, Any]]:
    """The cases on one host."""
    wanted = {(network, n, 1) for network in options.networks for n in grid(options)}
    wanted |= {
        (network, n, hosts)
        for network in options.networks
        for hosts in options.hosts
        for n in minibatches(options, hosts)
    }
    cases = {}
    for network, n, hosts in sorted(wanted):
        case = {"kind": "compute", "network": network, "seconds": options.seconds}
        # Layers that mix samples, such as BatchNorm, cut the whole minibatch into shards of a fixed size.
        alone = n % hosts == 0 and not pc.NetworkHandler(*NETWORKS[network]).mixes_samples
        size = {"batch_size": n // hosts, "hosts": 1} if alone else {"batch_size": n, "hosts": hosts}
        cases["compute", network, n, hosts] = case | size
    return cases


def sharing(hosts: int) -> int:
    """How many hosts use the same core."""
    return -(-hosts // _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def period(seconds: float) -> int:
    """How many steps to compute for one Allreduce, if computing one takes so long alone on a core."""
    return int(min(max(-(-_PERIOD_SECONDS // seconds), 1), _LONGEST_PERIOD))


def network_cases(options: argparse.Namespace, hosts: int, found: Round) -> dict[Name, dict[str, Any]]:
    """The cases on several hosts; `found`: what computing takes. With "direct" in its name a case is not dilated."""
    cases: dict[Name, dict[str, Any]] = {}
    share = sharing(hosts)
    for place, one in enumerate(options.links):
        common = {"link": list(one), "seconds": options.seconds}
        ways = [("dilated", _DILATION * share)] + ([("direct", 1)] if share == 1 else [])
        for way, dilation in ways:
            cases["latency", hosts, place, way] = {"kind": "latency", "dilation": dilation, **common}
            for network in options.networks:
                case = {"kind": "allreduce", "network": network, "dilation": dilation, **common}
                for part in (1, 0.5):
                    cases["allreduce", hosts, place, network, part, way] = {"part": part, **case}
                for n in minibatches(options, hosts):
                    steps = period(found["compute", network, n, hosts]) if way == "dilated" else 1
                    case = {"kind": "step", "network": network, "batch_size": n, "share": share, **common}
                    cases["step", hosts, place, network, n, way] = {"dilation": share * steps, **case}
                if way == "direct":
                    case = {"kind": "overlap", "network": network, "batch_size": _OVERLAPPED, **common}
                    cases["overlap", hosts, place, network] = case
    return cases


def run_job(hosts: int, cases: dict[Name, dict[str, Any]], about: dict[str, Any]) -> Round:
    """Run the cases on so many hosts."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="pcnhosts-") as folder:
        task, result = Path(folder, "task.json"), Path(folder, "found.json")
        command = [sys.executable, "-X", "faulthandler", str(PROGRAM), str(task), str(result)]

        different = {json.dumps(case): case for case in cases.values()}  # names may share a case

        def write(settings: str | None) -> None:
            task.write_text(json.dumps({"settings": settings, "cases": list(different.values())}))

        if hosts == 1:
            write(None)
            run(["taskset", "-c", str(cores[0]), *command], {"OPENBLAS_NUM_THREADS": "1"})
        else:
            with EmulatedHosts(hosts, cores) as emulated:
                write(str(emulated.settings))
                emulated.run(command, limit=1800)
        answer = json.loads(result.read_text())
    about["mpi"] = answer["mpi"]
    results = dict(zip(different, answer["found"], strict=True))
    return {name: results[json.dumps(case)] for name, case in cases.items()}


# ---- what follows from it


def composed(found: Round, hosts: int, place: int, network: str, batch_size: int) -> float:
    """Seconds of a step, from computing a host's share alone on a core, and the Allreduce alone."""
    share = found["compute", network, batch_size, hosts]
    return share + found["allreduce", hosts, place, network, 1, "dilated"]


def first_that_pays(times: dict[int, float], fewer: tuple[int, float], more: tuple[int, float]) -> int | None:
    """The smallest minibatch for which a step takes less time on more hosts than on fewer.

    Args:
        times: seconds of a step by the number of samples, on one core.
        fewer, more: number of hosts, and seconds of their Allreduce.

    Returns:
        None if there is none up to 100,000.
    """
    known = np.array(sorted(times))
    seconds = np.array([times[n] for n in known])
    slope = (seconds[-1] - seconds[-2]) / (known[-1] - known[-2])

    def step(n: np.ndarray, hosts: int, allreduce: float) -> np.ndarray:
        share = n / hosts
        beyond = np.maximum(share - known[-1], 0) * slope
        return np.interp(share, known, seconds) + beyond + allreduce

    n = np.arange(max(fewer[0], more[0]), 100_001)
    pays = step(n, *more) < step(n, *fewer)
    if not pays[-1]:
        return None
    slower = np.flatnonzero(~pays)
    return int(n[slower[-1] + 1 if len(slower) else 0])


# ---- the page


def page(options: argparse.Namespace, rounds: list[Round], about: dict[str, Any]) -> str:
    """The whole page."""
    head = page_head("Training across several hosts", "numpy", "numba", "mpi4py")
    return f"""{head}, {about["mpi"]}.
{plural(len(rounds), "round")}; medians, lowest and highest in brackets.

Hosts are emulated on this machine: each is a network namespace with a host name of its own and one rank of one thread.
TCP packets between two hosts go through a program that delivers them at the rate and the latency of the network that
is emulated (`emulated_hosts.py`; no kernel module but `tun` is needed). The latency is one way, as MPI measures it:
half a round trip of 8 bytes. What the machine itself needs for a packet is part of it.

* **1 host** is measured directly.
* **Several hosts, dilated**, is measured with slowed time (Gupta et al. 2006, "To Infinity and Beyond: Time-Warped
  Network Emulation", NSDI): the network has D times the latency and a D-th of the rate, several steps are computed for
  each Allreduce, and the time is divided by D. So {max(options.hosts)} hosts can share {_cores()} cores. The work
  of the processor for TCP is divided by D too, and so nearly left out: a lower bound.
* **Directly**, without dilation, only as many hosts as cores are measured. Then the cores that compute also do all the
  work of TCP and of the emulated network: an upper bound.
* **Composed** is the sum of two measured parts: the computation of a host's share of the minibatch, alone on one core,
  and the dilated Allreduce across the hosts, whose ranks compute nothing meanwhile and leave the core when they wait.

## The networks

{_networks_table(options, rounds)}

## When a further host pays off

The smallest minibatch for which a step takes less time, composed, with one core on each host. With C cores on each
host, C times as many samples, as long as the sum within a host takes little beside the one between hosts.

{_pays_table(options, rounds)}

## Strong scaling: the same minibatch on all hosts

Milliseconds of a step, and in brackets how many times as fast as on one host. Allreduce: its time alone, as a share of
the dilated step. Composed / measured: beside the dilated step.

{_steps_table(options, rounds, lambda hosts: [(n, n) for n in options.batch_sizes])}

## Weak scaling: {options.samples_per_host} samples on each host

In brackets: samples per second, as a multiple of one host.

{_steps_table(options, rounds, lambda hosts: [(options.samples_per_host, options.samples_per_host * hosts)])}

## Would an Allreduce of 16-bit numbers pay?

The Allreduce of the reduction buffer as it is, of float32, and of half as many bytes. "Saved" is the difference as a
share of the dilated step. It is the most that 16 bits can save: converting is not counted, and MPI has no fast sum of
16-bit floating-point numbers. A minibatch in brackets is one for which a step on one host is faster than on so many,
even with half of the bytes.

{_halves_table(options, rounds)}

## Would it pay to hide the Allreduce behind the computation?

Two hosts, directly, minibatch {_OVERLAPPED}. "Hidden" begins the Allreduce (`Iallreduce`) of a buffer of that size
before the whole step and waits for it after: more than any order of the layers' gradients allows. MPI makes no progress
between these calls, except what the kernel does.

{_overlap_table(options, rounds)}
"""


def _milliseconds(seconds: Iterable[float]) -> str:
    spread = Spread.of(1e3 * one for one in seconds)
    return f"{three_digits(spread.median)} ({three_digits(spread.low)} to {three_digits(spread.high)})"


def _percent(values: Iterable[float]) -> str:
    return f"{100 * Spread.of(values).median:.0f} %"


def _networks_table(options: argparse.Namespace, rounds: list[Round]) -> str:
    header = ["network", "hosts", "way", "one-way latency [us]", "rate of 1 MiB [Gb/s]"]
    rows = []
    for name in rounds[0]:
        if name[0] == "latency":
            _, hosts, place, way = name
            found = [one[name] for one in rounds]
            microseconds = Spread.of(1e6 * one["latency"] for one in found).text(1)
            rate = Spread.of(one["rate"] for one in found).text(2)
            rows.append(
                [str(options.links[place]), str(hosts), _way(way, _DILATION * sharing(hosts)), microseconds, rate]
            )
    return markdown_table(header, rows)


def _way(way: str, dilation: int) -> str:
    return f"dilated, D = {dilation}" if way == "dilated" else "directly"


def _pays_table(options: argparse.Namespace, rounds: list[Round]) -> str:
    steps = [(1, hosts) for hosts in options.hosts] + [
        (fewer, more) for fewer, more in zip(options.hosts, options.hosts[1:], strict=False)
    ]
    header = ["network", "trained", "bytes", *(f"{more} hosts before {fewer}" for fewer, more in steps)]
    rows = []
    for place, one in enumerate(options.links):
        for network in options.networks:
            row = [str(one), network, f"{_bytes(network):,}"]
            for fewer, more in steps:
                firsts = [_first(found, place, network, fewer, more, options) for found in rounds]
                known = [n for n in firsts if n is not None]
                row.append(_samples(Spread.of(known).median) if len(known) == len(firsts) else "none")
            rows.append(row)
    return markdown_table(header, rows)


def _first(found: Round, place: int, network: str, fewer: int, more: int, options: argparse.Namespace) -> int | None:
    times = {n: found["compute", network, n, 1] for n in grid(options)}
    sums = {hosts: found["allreduce", hosts, place, network, 1, "dilated"] for hosts in options.hosts} | {1: 0.0}
    return first_that_pays(times, (fewer, sums[fewer]), (more, sums[more]))


def _samples(n: float) -> str:
    """With two significant digits."""
    return f"{int(float(f'{n:.1e}')):,}"


def _bytes(network: str) -> int:
    return pc.NetworkHandler(*NETWORKS[network]).reduction_buffer.nbytes


def _steps_table(
    options: argparse.Namespace, rounds: list[Round], sizes: Callable[[int], list[tuple[int, int]]]
) -> str:
    """sizes: for a number of hosts, pairs of the minibatch on one host, and the one on so many."""
    header = ["network", "trained", "hosts", "minibatch", "1 host", "dilated", "Allreduce", "composed / measured"]
    header.append("directly")
    rows = []
    for place, one in enumerate(options.links):
        for network in options.networks:
            for hosts in options.hosts:
                for alone, together in sizes(hosts):
                    single = [found["compute", network, alone, 1] for found in rounds]
                    growth = together / alone
                    row = [str(one), network, str(hosts), f"{together:,}", _milliseconds(single)]
                    names = [("step", hosts, place, network, together, way) for way in ("dilated", "direct")]
                    cells = [_faster(single, rounds, name, growth) for name in names]
                    sums = [found["allreduce", hosts, place, network, 1, "dilated"] for found in rounds]
                    steps = [found[names[0]] for found in rounds]
                    ratio = Spread.of(
                        composed(found, hosts, place, network, together) / found[names[0]] for found in rounds
                    )
                    row += [cells[0], _percent(a / b for a, b in zip(sums, steps, strict=True)), ratio.text(), cells[1]]
                    rows.append(row)
    return markdown_table(header, rows)


def _faster(single: Sequence[float], rounds: list[Round], name: Name, growth: float) -> str:
    if name not in rounds[0]:
        return ""
    steps = [found[name] for found in rounds]
    speed = Spread.of(growth * one / step for one, step in zip(single, steps, strict=True)).median
    return f"{_milliseconds(steps)} [{speed:.2f}]"


def _halves_table(options: argparse.Namespace, rounds: list[Round]) -> str:
    header = ["network", "trained", "hosts", "float32 [ms]", "half the bytes [ms]"]
    header += [f"saved, minibatch {n:,}" for n in options.batch_sizes]
    rows = []
    for place, one in enumerate(options.links):
        for network in options.networks:
            for hosts in options.hosts:
                whole, half = (
                    [found["allreduce", hosts, place, network, part, "dilated"] for found in rounds]
                    for part in (1, 0.5)
                )
                row = [str(one), network, str(hosts), _milliseconds(whole), _milliseconds(half)]
                for n in options.batch_sizes:
                    steps = [found["step", hosts, place, network, n, "dilated"] for found in rounds]
                    single = [found["compute", network, n, 1] for found in rounds]
                    saved = [(a - b) for a, b in zip(whole, half, strict=True)]
                    share = _percent(a / b for a, b in zip(saved, steps, strict=True))
                    left = Spread.of((b - a) / c for a, b, c in zip(saved, steps, single, strict=True)).median
                    row.append(share if left < 1 else f"({share})")
                rows.append(row)
    return markdown_table(header, rows)


def _overlap_table(options: argparse.Namespace, rounds: list[Round]) -> str:
    header = ["network", "trained", "no Allreduce [ms]", "after the step [ms]", "hidden [ms]", "hidden saves"]
    rows = []
    for name in rounds[0]:
        if name[0] == "overlap":
            _, _, place, network = name
            found = [one[name] for one in rounds]
            row = [str(options.links[place]), network]
            row += [_milliseconds(one[way] for one in found) for way in ("none", "after", "meanwhile")]
            saved = Spread.of(100 * (1 - one["meanwhile"] / one["after"]) for one in found)
            rows.append([*row, saved.text(0, " %")])
    return markdown_table(header, rows) if rows else "There are fewer cores than hosts: not measured."


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=positive_integer, nargs="+", default=[2, 4], metavar="P", help="(2 4)")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(_NETWORKS), help=f"to train ({' '.join(_NETWORKS)})"
    )
    parser.add_argument(
        "--links", type=link, nargs="+", default=[link(text) for text in _LINKS], metavar="LINK",
        help=f"one-way latency and rate of the emulated networks ({' '.join(_LINKS)})",
    )  # fmt: skip
    parser.add_argument(
        "--batch-sizes", type=positive_integer, nargs="+", default=[100, 400, 1600], metavar="N",
        help="minibatches of strong scaling (100 400 1600)",
    )  # fmt: skip
    parser.add_argument("--samples-per-host", type=positive_integer, default=100, help="of weak scaling (100)")
    parser.add_argument("--rounds", type=positive_integer, default=3, help="(3)")
    parser.add_argument("--seconds", type=positive_number, default=0.3, help="of each measurement, at least (0.3)")
    parser.add_argument("--out", type=file_to_write, metavar="FILE", help="also write the page to this file")
    options = parser.parse_args()
    options.hosts, options.batch_sizes = sorted(set(options.hosts)), sorted(set(options.batch_sizes))
    if options.hosts[0] < 2 or options.hosts[-1] > 64:
        parser.error(
            f"--hosts must be from 2 to 64, got {options.hosts[0] if options.hosts[0] < 2 else options.hosts[-1]}"
        )
    if options.batch_sizes[0] < options.hosts[-1]:
        parser.error(f"--batch-sizes must be at least {options.hosts[-1]}, the hosts, got {options.batch_sizes[0]}")
    if max(minibatches(options, options.hosts[-1])) > 4096:
        parser.error(
            f"--batch-sizes and --samples-per-host times the hosts must be at most 4096, "
            f"got {max(minibatches(options, options.hosts[-1]))}"
        )
    return options


if __name__ == "__main__":
    run_to_the_end(main)
