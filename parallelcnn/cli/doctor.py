"""`parallelcnn doctor`: check the installation and how the ranks were started."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from parallelcnn.cli.options import add_setting, path
from parallelcnn.cli.output import say
from parallelcnn.wording import plural

if TYPE_CHECKING:
    from parallelcnn.comm import Transport
    from parallelcnn.network import NetworkHandler

_EXAMPLES = """\
examples:
  parallelcnn doctor
  mpirun -n 4 parallelcnn doctor --model lenet5 --batch-size 256
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "doctor",
        help="check the installation and how the ranks were started",
        description="Check the installation and how the ranks were started.\n"
        "Each line says ok or what to do; the exit code is 1 if there is something to do.",
        usage="parallelcnn doctor [options]",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=False)
    planned = parser.add_argument_group("the planned training")
    add_setting(planned, "model", " [default: paper]", default="paper")
    for name in ("batch_size", "threads", "timeout"):
        add_setting(planned, name)
    planned.add_argument(
        "--folder", type=path, default=".", metavar="DIR", help="directory for the results [default: the current one]"
    )


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from parallelcnn.cli.models import find_model
    from parallelcnn.comm import run_together
    from parallelcnn.doctor import examine, some_images
    from parallelcnn.network import NetworkHandler
    from parallelcnn.resilience.launch import launched_rank
    from parallelcnn.training.preparation import check_fit, check_numbers
    from parallelcnn.training.threads import check_threads

    if comm.size == 1 and launched_rank() != 0:
        return 0  # each rank is alone, although several were started: rank 0 reports it
    images = some_images(options.batch_size)

    def build() -> "NetworkHandler":
        check_numbers(1, options.batch_size, 0, None, images)
        check_threads(options.threads)
        network = NetworkHandler(find_model(options.model, images.classes), images.input_shape)
        check_fit(network, images)
        network.check_memory(options.threads or 1)
        return network

    network = run_together(comm, build)
    to_do = 0
    for finding in examine(comm, network, images, options.batch_size, options.threads, Path(options.folder)):
        to_do += not finding.ok
        if comm.rank == 0:
            say(finding)
    if comm.rank == 0:
        say(f"\n{plural(to_do, 'thing')} to do: see the lines with an arrow" if to_do else "\nall is well")
    comm.barrier()  # a launcher kills the others when one rank exits with an error: print first
    return 1 if to_do else 0
