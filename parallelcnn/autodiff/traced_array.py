"""The arrays that a traced function works with; see `tracing`."""

import math
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any

import numpy as np

from parallelcnn.errors import InputError, ShapeError

from .contraction import Array, broadcast
from .reduction import record_extremum, record_sum

Shape = tuple[int, ...]
Axes = int | tuple[int, ...] | None


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """An array as a traced function sees it: for one sample, without an axis of samples. It holds no numbers yet.

    Attributes:
        trace: the call of the function, a `tracing.Trace`.
        array: (*shape, n) or (*shape, 1), the array in which the recorded calls compute the numbers.
        needs_gradient: whether its gradient is needed.
        is_constant: whether it is a number, or an array, of the function's own.
        gradient: the gradient with respect to it, of the same shape; None: zero, as far as it is recorded.
    """

    def __init__(self, trace: Any, array: Array, needs_gradient: bool = False, is_constant: bool = False) -> None:
        self.trace, self.array, self.needs_gradient, self.is_constant = trace, array, needs_gradient, is_constant
        self.gradient: Traced | None = None

    shape = property(lambda self: self.array.shape[:-1])
    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))
    dtype = property(lambda self: self.array.dtype)
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Iterator["Traced"]:
        return (self[i] for i in range(len(self)))

    def __array_ufunc__(self, ufunc: Any, method: str, *operands: Any, **named: Any) -> Any:
        return self.trace.apply(ufunc, method, operands, named)

    def __array_function__(self, function: Any, types: Any, arguments: Any, named: Any) -> Any:
        return self.trace.call(function, arguments, named)

    # What is not possible.

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise InputError("np.array, np.asarray and functions that call them are not possible: write np.stack")

    def __bool__(self) -> bool:
        raise InputError(
            "if, and, or, not, max, min and bool(x) are not possible, since x stands for all samples: write "
            "np.where(condition, a, b), np.maximum(a, b) or np.minimum(a, b)"
        )

    def __float__(self) -> float:
        raise InputError(
            "float(x), int(x), round(x) and functions of math are not possible, since x stands for all samples: write "
            "functions of numpy, such as np.exp(x)"
        )

    __int__ = __index__ = __complex__ = __round__ = __float__

    def __setitem__(self, index: Any, value: Any) -> None:
        raise InputError("x[i] = y is not possible: write np.where, np.concatenate or np.stack, which make new arrays")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"x.{name} is not possible for an array x of a traced function")

    # Views.

    def __getitem__(self, index: Any) -> "Traced":
        places = index if isinstance(index, tuple) else (index,)
        for one in places:
            is_basic = one is None or isinstance(one, int | np.integer | slice | EllipsisType)
            if not is_basic or isinstance(one, bool):
                raise InputError(f"x[i] takes integers and slices, got {type(one).__name__}: np.where takes conditions")
        count = sum(one is not None and one is not Ellipsis for one in places)
        if count > self.ndim:
            raise ShapeError(f"x[i] with {count} indices does not fit {self.shape}, the shape of one sample")
        rest = () if any(one is Ellipsis for one in places) else (Ellipsis,)
        places = (*places, *rest, slice(None))

        def rule(g: Traced, y: Traced, a: Traced) -> Traced:
            return a.trace.placed(a.array.shape, [(places, g)])

        return self.trace.record(self.array[places], (self,), rule)

    def reshape(self, *shape: Any) -> "Traced":
        given = shape[0] if len(shape) == 1 and not isinstance(shape[0], int | np.integer) else shape
        known = math.prod(one for one in given if one != -1)
        lengths = [self.size // known if one == -1 and known else int(one) for one in given]
        if math.prod(lengths) != self.size or list(given).count(-1) > 1:
            raise ShapeError(f"{self.shape}, the shape of one sample, cannot become {tuple(given)}")
        return self.trace.record(
            self.trace.contiguous(self.array).reshape(*lengths, self.array.shape[-1]),
            (self,),
            lambda g, y, a: g.reshape(a.shape),
        )

    def ravel(self) -> "Traced":
        return self.reshape(-1)

    flatten = ravel

    def transpose(self, *axes: Any) -> "Traced":
        given = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        order = self.axes(tuple(given)) if given else tuple(range(self.ndim))[::-1]
        if sorted(order) != list(range(self.ndim)):
            raise ShapeError(f"axes must name each axis of {self.shape}, the shape of one sample, got {axes}")
        inverse = [order.index(i) for i in range(self.ndim)]
        view = self.array.transpose(*order, self.ndim)
        return self.trace.record(view, (self,), lambda g, y, a: g.transpose(inverse))

    def swapaxes(self, axis1: int, axis2: int) -> "Traced":
        order = list(range(self.ndim))
        (i,), (j,) = self.axes(axis1), self.axes(axis2)
        order[i], order[j] = j, i
        return self.transpose(order)

    def squeeze(self, axis: Axes = None) -> "Traced":
        axes = tuple(i for i, size in enumerate(self.shape) if size == 1) if axis is None else self.axes(axis)
        return self.trace.record(np.squeeze(self.array, axes), (self,), lambda g, y, a: g.expand_dims(axes))

    def expand_dims(self, axis: int | tuple[int, ...]) -> "Traced":
        added = axis if isinstance(axis, tuple) else (axis,)
        axes = axes_of(added, self.ndim + len(added), self.shape)
        return self.trace.record(np.expand_dims(self.array, axes), (self,), lambda g, y, a: g.squeeze(axes))

    def broadcast_to(self, shape: Shape) -> "Traced":
        return self.trace.record(broadcast(self.array, (*shape, self.array.shape[-1])), (self,), same)

    def copy(self) -> "Traced":
        return self

    # Other methods of numpy's arrays.

    def clip(self, a_min: Any = None, a_max: Any = None) -> Any:
        return np.clip(self, a_min, a_max)

    def dot(self, b: Any) -> Any:
        return np.dot(self, b)

    def sum(self, axis: Axes = None, keepdims: bool = False) -> "Traced":
        axes, numbers = self.axes(axis), self.trace.as_numbers(self)
        total = self.trace.record(record_sum(self.trace.step, numbers.array, axes), (numbers,), same)
        return total if keepdims else total.squeeze(axes)

    def mean(self, axis: Axes = None, keepdims: bool = False) -> "Traced":
        return self.sum(axis, keepdims) * (1 / self._count(axis))

    def var(self, axis: Axes = None, ddof: float = 0, keepdims: bool = False) -> "Traced":
        # No gradient flows through the mean: it would be the sum of the differences from it, which is 0.
        differences = self - Traced(self.trace, self.mean(axis, keepdims=True).array)
        return np.square(differences).sum(axis, keepdims) * (1 / (self._count(axis) - ddof))

    def std(self, axis: Axes = None, ddof: float = 0, keepdims: bool = False) -> "Traced":
        return np.sqrt(self.var(axis, ddof, keepdims))  # type: ignore[return-value]

    def max(self, axis: Axes = None, keepdims: bool = False) -> "Traced":
        return self._extremum(np.maximum, axis, keepdims)

    def min(self, axis: Axes = None, keepdims: bool = False) -> "Traced":
        return self._extremum(np.minimum, axis, keepdims)

    def _extremum(self, ufunc: np.ufunc, axis: Axes, keepdims: bool) -> "Traced":
        axes, numbers = self.axes(axis), self.trace.as_numbers(self)

        def rule(g: Traced, y: Traced, a: Traced) -> Any:
            """Equal extrema share the gradient, as in PyTorch's amax."""
            share = a.trace.as_numbers(a == y)
            return share * (g / share.sum(axes, keepdims=True))

        extremum = self.trace.record(record_extremum(self.trace.step, ufunc, numbers.array, axes), (numbers,), rule)
        return extremum if keepdims else extremum.squeeze(axes)

    def summed_as(self, other: "Traced") -> "Traced":
        """Summed over the axes, and the samples, along which `other` was broadcast; of the shape of `other`."""
        array, wanted = self.array, other.array.shape
        extra = array.ndim - len(wanted)
        axes = tuple(i for i, size in enumerate(array.shape) if i < extra or wanted[i - extra] == 1 != size)
        if axes:
            array = record_sum(self.trace.step, array, axes)
        return Traced(self.trace, broadcast(array[(0,) * max(extra, 0)], wanted))

    def axes(self, axis: Axes) -> tuple[int, ...]:
        """The axes that an argument `axis` means, from 0 on."""
        given = range(self.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        return axes_of(given, self.ndim, self.shape)

    def _count(self, axis: Axes) -> int:
        return math.prod(self.shape[i] for i in self.axes(axis))


def same(g: Traced, *_: Traced) -> Traced:
    """The rule of an operation that only repeats or adds numbers."""
    return g


def axes_of(axes: Sequence[int], ndim: int, shape: Shape) -> tuple[int, ...]:
    """Axes from 0 on; ShapeError unless there are such axes."""
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ShapeError(f"there is no axis {axis} in {shape}, the shape of one sample: it has no axis of samples")
    return tuple(int(axis) % ndim for axis in axes)
