"""Exceptions and warnings.

A message names the thing as written, the rule it breaks and the value that was found. Library code raises; `cli` turns
an `InputError` into exit code 2 and any other error into exit code 1. Only `cli` prints errors, and `comm` where a rank
has failed and ends the others.
"""

from typing import Self

_MESSAGE_ENDS = 1000  # characters that are shown of a long message's beginning, and of its end


class ParallelCNNError(Exception):
    """Base of every error that parallelcnn raises on purpose.

    Attributes:
        on_all_ranks: whether every rank raises it at the same place, so that no rank waits for another.
    """

    on_all_ranks = False

    def together(self) -> Self:
        """This error, marked as one that every rank raises."""
        self.on_all_ranks = True
        return self


class InputError(ParallelCNNError, ValueError):
    """An invalid argument, file, network or launch command."""


class ShapeError(InputError):
    """Shapes that do not fit together."""


class DataError(InputError):
    """A data set that is missing, damaged or not what its header says."""


class CheckpointError(InputError):
    """A model file or a checkpoint that cannot be read, or does not fit what it is for."""


class LaunchError(InputError):
    """A launch command that does not start the ranks that it asks for."""


class ReplicaMismatchError(ParallelCNNError, RuntimeError):
    """Ranks differ in what must be the same on all of them."""


class RankLostError(ParallelCNNError, RuntimeError):
    """A rank was lost, and the others can continue without it; see `resilience.fault_tolerance`."""


class GradientError(ParallelCNNError, AssertionError):
    """A backward pass that is not the derivative of its forward pass."""


class DivergenceError(ParallelCNNError, ArithmeticError):
    """A loss that is no longer a number; every rank sees it in the same step."""


class TrainingWarning(UserWarning):
    """Something is not as it should be, but training continues."""


def nearest_name(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """The end of a message about an unknown name: the known names, and the nearest of them."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    listed = f"known: {', '.join(known)}"
    return f"did you mean {near[0]!r}? ({listed})" if near else listed


def shown(message: object) -> str:
    """A message without control characters, and without its middle if it is long: it may quote a file."""
    escaped = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(message))
    return escaped if len(escaped) <= 2 * _MESSAGE_ENDS else f"{escaped[:_MESSAGE_ENDS]} ... {escaped[-_MESSAGE_ENDS:]}"
