"""Exceptions and warnings.

A message names the argument as written, the rule that it breaks and the value that was found. Library code raises;
`cli` turns an `InputError`, and Python's error of a wrong path, into exit code 2 and any other error into exit code 1.
Only `cli` prints errors, and `comm` when a failed rank ends the others.
"""

from typing import Self

_MESSAGE_ENDS = 1000  # characters shown at each end of a long message


class ParallelCNNError(Exception):
    """Base class of all errors that parallelcnn raises on purpose.

    Attributes:
        on_all_ranks: whether all ranks raise this error at the same point, so that no rank waits for another.
    """

    on_all_ranks = False

    def together(self) -> Self:
        """Mark this error as raised on all ranks, and return it."""
        self.on_all_ranks = True
        return self


class InputError(ParallelCNNError, ValueError):
    """An invalid argument, file, network or launch command."""


class ShapeError(InputError):
    """Shapes that do not fit together."""


class UnknownNameError(InputError, KeyError):
    """A name for which a mapping holds nothing."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


class DataError(InputError):
    """A data set that is missing, damaged or different from what its header says."""


class CheckpointError(InputError):
    """A model file or checkpoint that cannot be read, or does not fit this network or training."""


class LaunchError(InputError):
    """A launch command that fails to start the requested ranks."""


class ReplicaMismatchError(ParallelCNNError, RuntimeError):
    """Ranks differ in arguments, data or parameters that must be the same on all ranks."""


class RankLostError(ParallelCNNError, RuntimeError):
    """A rank was lost, and the others can continue without it; see `resilience.fault_tolerance`."""


class GradientError(ParallelCNNError, AssertionError):
    """A backward pass that is not the derivative of its forward pass."""


class DivergenceError(ParallelCNNError, ArithmeticError):
    """A loss or gradient that is no longer finite. Every rank raises it in the same step."""


class TrainingWarning(UserWarning):
    """A problem that does not stop training."""


def nearest_name(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """The end of a message about an unknown name: the known names, at most twenty, and the nearest one."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    listed = f"known: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
    return f"did you mean {near[0]!r}? ({listed})" if near else listed


def printable(text: str) -> str:
    """The text with control characters, and others that cannot be seen, written as in Python: "\\x1b"."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def shown(message: object) -> str:
    """Clean a message that may quote a file: remove control characters, and the middle of a long message."""
    escaped = printable(str(message))
    return escaped if len(escaped) <= 2 * _MESSAGE_ENDS else f"{escaped[:_MESSAGE_ENDS]} ... {escaped[-_MESSAGE_ENDS:]}"


def sentence(error: BaseException) -> str:
    """What to say of an error. Python's own text about a file begins with a number in brackets."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
