"""The entry point of the command `parallelcnn`: reads the arguments, runs a sub-command, turns errors into exit codes.

    parallelcnn train                                          # the built-in digits, one rank
    mpirun -n 4 parallelcnn train --data mnist --epochs 3      # four ranks
    srun --mpi=pmix parallelcnn train --data mnist             # in a SLURM job

Exit codes: 0 success, 2 wrong usage or input, 1 any other failure, 130 after Ctrl-C, 128 plus the number of another
signal, and 74 if the checkpoint could not be saved then. Each sub-command has a module of its own, which imports numpy,
numba and MPI inside functions: --help and typing errors are answered at once.
"""

import contextlib
import difflib
import gc
import os
import re
import signal
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any, TextIO

from parallelcnn._version import __version__
from parallelcnn.cli import data, doctor, evaluate, export_model, guide, import_model, info, predict, runs, train
from parallelcnn.cli.options import Parser, UsageError
from parallelcnn.cli.output import lost_output, safe_output, say
from parallelcnn.errors import InputError, LaunchError, ParallelCNNError, TrainingWarning, sentence
from parallelcnn.resilience.signals import hold_stop_signals, let_interrupts_end_the_process
from parallelcnn.status_line import StatusLine

if TYPE_CHECKING:
    from parallelcnn.comm import Transport

_WRONG_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_COMMANDS = (train, evaluate, predict, runs, export_model, import_model, data, info, doctor, guide)

_EXAMPLES = """\
examples:
  parallelcnn train                            train on the built-in digits
  parallelcnn train --help                     options of a command
  parallelcnn evaluate runs/a                  evaluate the network of a run
  parallelcnn predict runs/a new/*.jpg         predict the classes of images
  parallelcnn runs                             list runs and compare them
  mpirun -n 4 parallelcnn train --data mnist   train on four ranks
  mpirun -n 4 parallelcnn doctor               check installation and launch
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit code."""
    before = signal.getsignal(signal.SIGINT)
    try:
        with safe_output(), warnings.catch_warnings(), StatusLine() as status_line:
            warnings.simplefilter("default", TrainingWarning)  # whatever PYTHONWARNINGS says: none ends a training
            warnings.showwarning = _show_warning
            return _main(arguments, status_line)
    finally:
        with contextlib.suppress(ValueError, TypeError):  # not on the main thread; not set by Python
            signal.signal(signal.SIGINT, before)


def _main(arguments: list[str] | None, status_line: StatusLine) -> int:
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        return _complete()
    if arguments is None:
        gc.set_threshold(100_000)  # numba makes many objects that stay: with 700 a training starts 0.1 s later
        hold_stop_signals()
    let_interrupts_end_the_process()
    parser, commands = _parsers()
    try:
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise UsageError(_describe_unknown(unknown[0], options.command, commands))
        if getattr(options, "strict", None):  # the others are done at once, or use a pager
            status_line.start(sys.stderr)
        from parallelcnn.comm import Serial
        from parallelcnn.resilience.watchdog import Watchdog, check_timeout

        if "prepare" in options:
            options.prepare(options)
        if "timeout" in options:
            check_timeout(options.timeout)
    except UsageError as error:
        return _say_once(2, str(error))
    except InputError as error:
        return _say_once(2, f"parallelcnn: error: {error}")
    except SystemExit:  # after --help
        return 0
    if options.version:
        return _say_once(0, f"parallelcnn {__version__}", sys.stdout)
    if options.command is None:
        return _say_once(2, parser.format_help())
    comm: Transport = Serial()
    status_line.status = lambda: comm.status
    try:
        if options.strict is not None:  # None: a command of one process
            from parallelcnn.resilience.world import world

            with contextlib.nullcontext() if options.strict else contextlib.suppress(LaunchError):
                comm = world(strict=options.strict, timeout=options.timeout)
        with Watchdog(comm, options.timeout):
            code = options.run(options, comm)
        if code == 0 and options.run is not train.run:  # whose results are files
            code = _check_output()
        return _code_of_rank(code, comm)
    except LaunchError as error:
        return _say_once(2, f"parallelcnn: error: {error}")
    except BaseException as error:  # any error at all: the other ranks are waiting
        return _code_of_rank(_fail(error, comm), comm)


def _complete() -> int:
    """Tell the shell the completions of its command line, which argcomplete finds in variables of the environment."""
    with contextlib.suppress(ImportError):  # without the extra there are none
        import argcomplete

        argcomplete.autocomplete(_parsers()[0])  # ends the process
    return 1


def _check_output() -> int:
    """1 if output is lost, with a message unless its reader has closed the pipe; otherwise 0."""
    error = lost_output()
    if error is not None and not isinstance(error, BrokenPipeError):
        say(f"parallelcnn: error: the output cannot be written: {error.strerror}", sys.stderr)
    return 0 if error is None else 1


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and those of the sub-commands by name."""
    parser = Parser(
        prog="parallelcnn",
        usage="parallelcnn COMMAND [options]",
        description="Train convolutional networks on CPUs, data-parallel over MPI ranks.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(
        title="commands", prog="parallelcnn", dest="command", metavar="COMMAND", parser_class=Parser
    )
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser, commands.choices


def _describe_unknown(argument: str, command: str | None, commands: dict[str, Parser]) -> str:
    """The message about an argument that the parser does not know."""
    name = f"parallelcnn {command}" if command else "parallelcnn"
    if not argument.startswith("-"):
        return f"{name}: error: unexpected argument {argument!r}; see {name} --help"
    option = argument.partition("=")[0]
    known = re.findall(r"--[a-z][a-z-]*", commands[command].format_help()) if command else ["--help", "--version"]
    near = difflib.get_close_matches(option, known, n=1)
    return f"{name}: error: no option {option!r}: {f'did you mean {near[0]!r}?' if near else f'see {name} --help'}"


def _code_of_rank(code: int, comm: "Transport") -> int:
    """The exit code of this rank when the job ends with `code`.

    In fault-tolerant mode Open MPI's launcher (5.0.11) sometimes hangs if several ranks exit at once with a code other
    than 0 (1 in 6 runs with 8 ranks). One such rank is enough to set the launcher's own exit code.
    """
    return code if comm.rank == 0 or not comm.fault_tolerant else 0


def _say_once(code: int, message: str, stream: TextIO | None = None) -> int:
    """Print on rank 0 only, before MPI has started; returns the code."""
    from parallelcnn.resilience.launch import launched_rank

    if launched_rank() == 0:
        say(message, stream or sys.stderr)
    elif code != 0:
        time.sleep(2)  # launchers kill all ranks when one exits with an error: let rank 0 print first
    return code


def _fail(error: BaseException, comm: "Transport") -> int:
    """Print the error and return the exit code. If only this rank has failed, end all ranks."""
    from parallelcnn.resilience.ending import abort_after_interrupt, end_all

    together = comm.size == 1 or getattr(error, "on_all_ranks", False)
    who = "" if together else f"rank {comm.rank} of {comm.size}: "
    code = 2 if isinstance(error, (InputError, *_WRONG_PATHS)) else 1
    if isinstance(error, KeyboardInterrupt):
        if not together:
            abort_after_interrupt(comm)
        code, message = 130, "parallelcnn: interrupted"
    elif isinstance(error, ParallelCNNError | OSError | MemoryError):
        message = f"parallelcnn: error: {who}{sentence(error)}"
    else:
        message = f"parallelcnn: {who}failed\n{''.join(traceback.format_exception(error)).rstrip()}"
    if not together:
        end_all(comm, code, message)
    if comm.rank == 0:
        say(message, sys.stderr)
    comm.barrier()  # a launcher kills the others when one rank exits: print first
    return code


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print one of our warnings as a sentence, any other as Python does."""
    if issubclass(category, TrainingWarning):
        say(f"parallelcnn: warning: {message}", sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
