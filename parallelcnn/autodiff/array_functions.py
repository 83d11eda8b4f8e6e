"""numpy's functions of whole arrays, such as np.where and np.concatenate, for traced functions; see `tracing`."""

import string
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from parallelcnn.errors import InputError, ShapeError

from .traced_array import Axes, Traced, same


def _trace_of(arrays: Sequence[Any]) -> Any:
    return next(one.trace for one in arrays if isinstance(one, Traced))


def _where(condition: Any, a: Any = None, b: Any = None) -> Traced:
    if a is None or b is None:
        raise InputError("np.where takes three arguments here: np.where(condition, a, b)")
    trace = _trace_of((condition, a, b))
    chosen: Any
    chosen, *others = (trace.as_traced(one) for one in (condition, a, b))
    chosen = chosen if chosen.dtype == bool else np.not_equal(chosen, 0)
    arguments = (chosen, *map(trace.as_numbers, others))
    trace.check_broadcasting(arguments)
    y = trace.step.scratch(np.broadcast_shapes(*(one.array.shape for one in arguments)))
    trace.step.call(np.copyto, y, arguments[2].array)
    trace.step.call(np.copyto, y, arguments[1].array, where=arguments[0].array)
    return trace.record(
        y, arguments, same, lambda g, y, c, a, b: np.where(c, g, 0), lambda g, y, c, a, b: np.where(c, 0, g)
    )


def _clip(a: Any, a_min: Any = None, a_max: Any = None) -> Any:
    above = a if a_min is None else np.maximum(a, a_min)
    return above if a_max is None else np.minimum(above, a_max)


def _concatenate(arrays: Sequence[Any], axis: int = 0) -> Traced:
    trace = _trace_of(arrays)
    parts = tuple(trace.as_numbers(trace.as_traced(one)) for one in arrays)
    (axis,) = parts[0].axes(axis)
    if len({(one.ndim, one.shape[:axis], one.shape[axis + 1 :]) for one in parts}) > 1:
        raise ShapeError(f"arrays of shapes {_listed(parts)} cannot be joined along axis {axis}")
    starts = np.cumsum([0, *(one.shape[axis] for one in parts)]).tolist()
    places = [(*(slice(None),) * axis, slice(start, stop)) for start, stop in pairwise(starts)]
    (samples,) = np.broadcast_shapes(*(one.array.shape[-1:] for one in parts))
    shape = (*parts[0].shape[:axis], starts[-1], *parts[0].shape[axis + 1 :], samples)
    y = trace.placed(shape, list(zip(places, parts, strict=True)))
    return trace.record(y.array, parts, *map(_cut_out, places))


def _stack(arrays: Sequence[Any], axis: int = 0) -> Traced:
    return _concatenate([np.expand_dims(one, axis) for one in arrays], axis)


def _pad(a: Traced, pad_width: Any, mode: str = "constant") -> Traced:
    if mode != "constant":
        raise InputError(f"np.pad adds zeros only here, got mode {mode!r}")
    widths = np.broadcast_to(pad_width, (a.ndim, 2)).tolist()
    if min(map(min, widths), default=0) < 0:
        raise InputError(f"np.pad takes widths of at least 0, got {pad_width!r}")
    place = tuple(slice(before, before + size) for (before, _), size in zip(widths, a.shape, strict=True))
    shape = [size + before + after for (before, after), size in zip(widths, a.shape, strict=True)]
    y = a.trace.placed((*shape, a.array.shape[-1]), [(place, a.trace.as_numbers(a))])
    return a.trace.record(y.array, (a,), _cut_out(place))


def _cut_out(place: Any) -> Callable[..., Traced]:
    """The rule for an array that was copied to a place."""
    return lambda g, *_: Traced(g.trace, g.array[place])


def _moveaxis(a: Traced, source: Axes, destination: Axes) -> Traced:
    moved = dict(zip(a.axes(destination), a.axes(source), strict=True))
    others = iter([i for i in range(a.ndim) if i not in moved.values()])
    return a.transpose([moved[i] if i in moved else next(others) for i in range(a.ndim)])


def _dot(a: Any, b: Any) -> Any:
    if np.ndim(b) > 2:
        raise InputError("np.dot takes vectors and matrices here: write a @ b, np.tensordot or np.einsum")
    return a * b if np.ndim(a) == 0 or np.ndim(b) == 0 else a @ b


def _einsum(subscripts: str, *operands: Any) -> Traced:
    inputs, arrow, result = subscripts.replace(" ", "").partition("->")
    labels, trace = inputs.split(","), _trace_of(operands)
    arrays = [trace.as_traced(one) for one in operands]
    is_plain = all(len(set(one)) == len(one) and set(one) <= set(string.ascii_letters) for one in (*labels, result))
    if not arrow or not is_plain or len(labels) > 2 or not set(result) <= set(inputs):
        raise InputError(
            f"np.einsum takes one or two arrays, '->' and no label twice in an array here, got {subscripts!r}"
        )
    if [len(one) for one in labels] != [one.ndim for one in arrays]:
        raise ShapeError(f"np.einsum({subscripts!r}, ...) does not fit arrays of shapes {_listed(arrays)}")
    for i, own in enumerate(labels):
        kept = result + "".join(labels[:i] + labels[i + 1 :])
        arrays[i] = arrays[i].sum(tuple(place for place, one in enumerate(own) if one not in kept))
        labels[i] = "".join(one for one in own if one in kept)
    if len(arrays) == 2:
        return trace.product(arrays[0], labels[0], arrays[1], labels[1], result)
    return arrays[0].transpose([labels[0].index(one) for one in result])


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Traced:
    ndims = np.ndim(a), np.ndim(b)
    pairs = (range(ndims[0] - axes, ndims[0]), range(axes)) if isinstance(axes, int) else axes
    of_a, of_b = ([one] if isinstance(one, int) else list(one) for one in pairs)
    if any(len({i % max(ndim, 1) for i in some}) < len(some) for some, ndim in zip((of_a, of_b), ndims, strict=True)):
        raise ShapeError(f"np.tensordot takes each axis of an array once, got axes {axes!r}")
    left, right = string.ascii_lowercase[: ndims[0]], list(string.ascii_uppercase[: ndims[1]])
    for i, j in zip(of_a, of_b, strict=True):
        right[j] = left[i]
    result = "".join(one for one in [*left, *right] if (one in left) != (one in right))
    trace = _trace_of((a, b))
    return trace.product(trace.as_traced(a), left, trace.as_traced(b), "".join(right), result)


def _listed(arrays: Sequence[Traced]) -> str:
    return " and ".join(str(one.shape) for one in arrays)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.sum: Traced.sum,
    np.mean: Traced.mean,
    np.var: Traced.var,
    np.std: Traced.std,
    np.max: Traced.max,
    np.min: Traced.min,
    np.amax: Traced.max,
    np.amin: Traced.min,
    np.reshape: Traced.reshape,
    np.ravel: Traced.ravel,
    np.transpose: Traced.transpose,
    np.swapaxes: Traced.swapaxes,
    np.moveaxis: _moveaxis,
    np.squeeze: Traced.squeeze,
    np.expand_dims: Traced.expand_dims,
    np.broadcast_to: Traced.broadcast_to,
    np.where: _where,
    np.clip: _clip,
    np.concatenate: _concatenate,
    np.stack: _stack,
    np.pad: _pad,
    np.dot: _dot,
    np.einsum: _einsum,
    np.tensordot: _tensordot,
    np.round: lambda a: np.rint(a),
    np.around: lambda a: np.rint(a),
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: lambda a: a.size,
    np.zeros_like: lambda a: np.zeros(a.shape),
    np.ones_like: lambda a: np.ones(a.shape),
}
