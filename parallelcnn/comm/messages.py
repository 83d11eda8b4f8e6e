"""Messages of ranks that end, and of MPI errors."""

import contextlib
import sys


def say(message: str) -> None:
    """Flush stdout and print the message on stderr. It never raises, since the code after it must run."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stdout or stderr is closed
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the error's name."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def last_line(error: BaseException) -> str:
    """The last line of an error's text: MPICH's errors are stacks of ten lines."""
    return str(error).strip().splitlines()[-1]
