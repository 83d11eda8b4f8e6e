"""The command: `parallelcnn train`, `evaluate`, `info`, `doctor`; alone, or on every rank under mpirun or srun.

    parallelcnn train                                          # the built-in digits, one rank
    mpirun -n 4 parallelcnn train --data mnist --epochs 3      # four ranks
    srun --mpi=pmix parallelcnn train --data mnist             # in a SLURM job

Here errors become exit codes: 0 done, 2 wrong usage or input, 1 failure. Heavy imports stand inside the functions,
after the arguments have been read, so that --help and typing errors are answered at once.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from parallelcnn._version import __version__
from parallelcnn.errors import InputError, LaunchError, ParallelCNNError
from parallelcnn.resilience.signals import (
    catch_interrupts,
    hold_requests_to_leave,
    interrupts_ending_the_process,
    let_interrupts_end_the_process,
)

if TYPE_CHECKING:
    from parallelcnn.comm import Communicator
    from parallelcnn.data import Dataset

_IMPORTED = time.perf_counter()


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit code."""
    before = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _main(arguments)
    finally:
        with contextlib.suppress(ValueError, TypeError):  # not on the main thread; not set by Python
            signal.signal(signal.SIGINT, before)


def _main(arguments: list[str] | None) -> int:
    if arguments is None:
        hold_requests_to_leave()
    let_interrupts_end_the_process()
    from parallelcnn.comm import Serial
    from parallelcnn.resilience.watchdog import Watch

    _make_output_safe()
    try:
        options = _parser().parse_args(arguments)
    except _UsageError as error:
        return _leave(2, str(error))
    except SystemExit:  # after --help
        return 0
    if options.version:
        return _leave(0, f"parallelcnn {__version__}", sys.stdout)
    if options.command is None:
        return _leave(2, _parser().format_help())
    comm: Communicator = Serial()
    try:
        comm = _ranks(options.command)
        with Watch(comm, options.timeout):
            code = options.run(options, comm) or 0
        sys.stdout.flush()
        return _own_part(code, comm)
    except LaunchError as error:
        return _leave(2, f"parallelcnn: error: {error}")
    except BaseException as error:  # whatever it is: the other ranks wait
        return _own_part(_fail(error, comm), comm)


def _ranks(command: str) -> "Communicator":
    """Those that take part; the commands that look at a launch take it as it is."""
    from parallelcnn.comm import Serial, world

    try:
        return world(strict=command not in ("info", "doctor"))
    except LaunchError:
        if command != "doctor":
            raise
        return Serial()


def _own_part(code: int, comm: "Communicator") -> int:
    """The exit code of this rank where all of them end with `code`.

    Open MPI's launcher (5.0.11), where ranks may be lost, sometimes waits for ever if several leave at once with a code
    other than 0 (1 of 6 times with 8 ranks). One of them is enough to be the launcher's.
    """
    return code if comm.rank == 0 or not comm.survives else 0


def _leave(code: int, message: str, stream: TextIO | None = None) -> int:
    """Print on one of the ranks, before they know of each other; returns the code."""
    from parallelcnn.comm import launched_rank

    if launched_rank() == 0:
        print(message, file=stream or sys.stderr, flush=True)
    elif code != 0:
        time.sleep(2)  # launchers end all ranks once one has left with an error: let rank 0 speak first
    return code


def _fail(error: BaseException, comm: "Communicator") -> int:
    """Say what went wrong and return the exit code; if only this rank knows, end all ranks."""
    from parallelcnn.comm import abort_after_interrupt

    code = 2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    together = comm.size == 1 or getattr(error, "on_all_ranks", False)
    who = "" if together else f"rank {comm.rank} of {comm.size}: "
    message = ""
    if isinstance(error, BrokenPipeError):  # nobody listens any more; nothing to say, also not at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif together and comm.rank != 0:
        pass
    elif isinstance(error, ParallelCNNError | OSError):
        message = f"parallelcnn: error: {who}{error}"
    elif isinstance(error, KeyboardInterrupt) and together:
        message = "parallelcnn: interrupted"
    elif isinstance(error, KeyboardInterrupt):
        abort_after_interrupt(comm)
    else:
        message = f"parallelcnn: {who}failed\n{''.join(traceback.format_exception(error)).rstrip()}"
    if not together:
        comm.end_all(code, message)
    if message:
        print(message, file=sys.stderr, flush=True)
    comm.barrier()  # a launcher ends the others once one has left: not before the message is out
    return code


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """As a sentence, where it is one of ours."""
    from parallelcnn.errors import TrainingWarning

    if issubclass(category, TrainingWarning):
        print(f"parallelcnn: warning: {message}", file=sys.stderr, flush=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _make_output_safe() -> None:
    """Printing must not fail: without a stdout, or with one that cannot show every letter."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing: under mpirun only one rank should speak."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{self.format_usage()}{self.prog}: error: {message}")

    def print_help(self, file: Any = None) -> None:
        from parallelcnn.comm import launched_rank

        if launched_rank() == 0:
            super().print_help(file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="parallelcnn",
        description="Trains convolutional networks on CPUs, data-parallel over MPI ranks.",
        epilog="On N ranks: mpirun -n N parallelcnn train ...",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    train = commands.add_parser("train", help="train a network", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    train.set_defaults(run=_train)
    _add_data_options(train)
    train.add_argument("--model", default="paper", metavar="NAME|FILE.py:FUNCTION", help=f"the network: {_MODEL_HELP}")
    train.add_argument("--epochs", type=int, default=3, metavar="N", help="passes over the training set")
    train.add_argument(
        "--batch-size", type=int, default=100, metavar="N", help="samples in a minibatch, over all ranks"
    )
    train.add_argument("--learning-rate", type=float, default=0.1, metavar="X", help="of SGD")
    train.add_argument("--momentum", type=float, default=0.0, metavar="X", help="of SGD, in [0, 1)")
    train.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    train.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="pull of the parameters to zero")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="of start values and sample order")
    train.add_argument(
        "--evaluate-every", type=int, metavar="K", help="test after every K minibatches, and not only each epoch"
    )
    _add_threads_option(train)
    _add_timeout_option(train)
    train.add_argument(
        "--profile", action="store_true", help="measure where the time goes: a table, and a time line in trace.json"
    )
    train.add_argument(
        "--reproducible",
        type=int,
        metavar="G",
        help="cut every minibatch into G grains and sum them exactly: the same bits on any number of ranks and threads",
    )
    train.add_argument(
        "--verify",
        type=int,
        nargs="?",
        const=20,
        metavar="K",
        help="first train K minibatches (20) on one rank and on all, and compare",
    )
    train.add_argument(
        "--checkpoint-every", type=int, metavar="K", help="save after every K minibatches, and not only each epoch"
    )
    train.add_argument("--checkpoint-seconds", type=float, metavar="T", help="save after every T seconds, too")
    train.add_argument("--keep-last", type=int, default=2, metavar="N", help="checkpoints that are kept")
    train.add_argument("--keep-best", action="store_true", help="keep the checkpoint with the best test result as well")
    train.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="go on from a checkpoint: the newest in --out that reads well, or this one",
    )
    train.add_argument(
        "--repair",
        default="stop",
        metavar="stop|majority|checkpoint",
        help="if ranks no longer hold the same parameters: end, take over what most hold, or go back to a checkpoint",
    )
    train.add_argument("--out", metavar="DIR", help="folder for the results; otherwise runs/ and the UTC time")

    evaluate = commands.add_parser(
        "evaluate", help="test a trained network", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("file", metavar="MODEL", help="model.npz, or the folder that holds it")
    _add_data_options(evaluate)
    _add_threads_option(evaluate)
    _add_timeout_option(evaluate)
    evaluate.add_argument(
        "--model", metavar="NAME|FILE.py:FUNCTION", help=f"the network, if its layers are your own: {_MODEL_HELP}"
    )

    info = commands.add_parser("info", help="version, MPI library, ranks, hosts, cores, threads")
    info.set_defaults(run=_info, timeout=0)

    doctor = commands.add_parser(
        "doctor",
        help="is it installed and started right? says of each thing ok, or what to do",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--model", default="paper", metavar="NAME|FILE.py:FUNCTION", help=f"the network: {_MODEL_HELP}")
    doctor.add_argument(
        "--batch-size", type=int, default=100, metavar="N", help="samples in a minibatch, over all ranks"
    )
    _add_threads_option(doctor)
    _add_timeout_option(doctor)
    doctor.add_argument("--folder", default=".", metavar="DIR", help="where results are to be written")
    return parser


_MODEL_HELP = "paper, lenet5, or a function of yours that returns the layers"


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", default="digits", metavar="digits|mnist|FOLDER", help="data set; a folder holds the four IDX files"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where mnist lies; otherwise the cache, or downloaded into it"
    )


def _add_threads_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="that a rank computes on; otherwise its part of the node's cores, as far as it has work for them",
    )


def _add_timeout_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="that a rank waits for others before all end, with a message that names those; 0: for ever",
    )


def _train(options: argparse.Namespace, comm: "Communicator") -> int:
    from parallelcnn.cli.run import Run

    catch_interrupts()
    return Run(options, comm, _IMPORTED).go()


def _evaluate(options: argparse.Namespace, comm: "Communicator") -> None:
    from parallelcnn.cli.reporting import as_percent
    from parallelcnn.comm import Serial, run_together
    from parallelcnn.data import Dataset
    from parallelcnn.files.model import load_model
    from parallelcnn.models import find_model
    from parallelcnn.network import NetworkHandler
    from parallelcnn.training.compilation import compile_in_turns
    from parallelcnn.training.evaluation import evaluate
    from parallelcnn.training.preparation import check_fit
    from parallelcnn.training.threads import check_threads

    catch_interrupts()
    run_together(comm, lambda: check_threads(options.threads))
    _, test_set = _load_data(options, comm)

    comm.activity = "reading the network"

    def load() -> NetworkHandler:
        if options.file == "":
            raise InputError("evaluate takes a model file, got ''")
        file = Path(options.file)
        layers = None if options.model is None else find_model(options.model, test_set.classes)
        network = load_model(file / "model.npz" if os.path.isdir(file) else file, layers)
        check_fit(network, test_set)
        return network

    network = run_together(comm, load)
    one_sample = Dataset(test_set.images[:1], test_set.labels[:1], test_set.classes)
    with interrupts_ending_the_process():
        compile_in_turns(comm, lambda: evaluate(network, one_sample, Serial(), threads=1))
    result = evaluate(network, test_set, comm, threads=options.threads)
    if comm.rank == 0:
        print(f"{test_set.name}: test loss {result.loss:.4f}, test accuracy {as_percent(result.accuracy)}")


def _info(options: argparse.Namespace, comm: "Communicator") -> None:
    import numba
    import numpy as np

    from parallelcnn.cli.reporting import in_words
    from parallelcnn.comm import hosts, launched_ranks, mpi_library
    from parallelcnn.resources import usable_cores
    from parallelcnn.training.threads import blas_threads, choose_threads

    _ = np.zeros((2, 2)) @ np.zeros((2, 2))  # brings numpy's BLAS into sight
    everywhere = hosts(comm)
    cores = comm.gather(len(usable_cores()))
    threads = comm.gather(choose_threads(comm, None))
    if comm.rank != 0:
        return
    launched, said_by = launched_ranks()
    print(f"parallelcnn    {__version__}")
    print(f"python         {sys.version.split()[0]}, numpy {np.__version__}, numba {numba.__version__}")
    print(f"MPI library    {mpi_library()}")
    print(f"ranks          {comm.size}")
    if launched > 1 and comm.size == 1:
        print(f"               but {said_by}: each rank is alone; `parallelcnn train` says which launcher is right")
    for rank, host in enumerate(everywhere):
        may_use, computes_on = in_words(cores[rank], "core"), in_words(threads[rank], "thread")
        print(f"    rank {rank:<6} {host}, may use {may_use}, computes on {computes_on} unless told otherwise")
    print(f"numba threads  {numba.config.NUMBA_NUM_THREADS} (not used: a rank has threads of its own)")
    for library, count in blas_threads():
        print(f"BLAS threads   {count} ({library}; one in each of a rank's threads)")


def _doctor(options: argparse.Namespace, comm: "Communicator") -> int:
    from parallelcnn.cli.reporting import in_words
    from parallelcnn.comm import launched_rank, run_together
    from parallelcnn.doctor import examine, some_images
    from parallelcnn.models import find_model
    from parallelcnn.network import NetworkHandler
    from parallelcnn.training.preparation import check_fit, check_numbers
    from parallelcnn.training.threads import check_threads

    if comm.size == 1 and launched_rank() != 0:
        return 0  # alone where it should not be; rank 0 is too, and says so
    images = some_images(options.batch_size)

    def build() -> NetworkHandler:
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
            print(finding, flush=True)
    if comm.rank == 0:
        print(
            f"\n{in_words(to_do, 'thing')} to do: see the lines with an arrow" if to_do else "\nall is well", flush=True
        )
    comm.barrier()  # a launcher ends the others once one has left with an error: not before the report is out
    return 1 if to_do else 0


def _load_data(options: argparse.Namespace, comm: "Communicator") -> "tuple[Dataset, Dataset]":
    from parallelcnn.comm import share_on_node
    from parallelcnn.data import load_data

    comm.activity = "reading the data set"
    return share_on_node(comm, lambda: load_data(options.data, options.data_dir))
