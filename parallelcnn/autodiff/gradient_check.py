"""Is a layer's backward pass the derivative of its forward pass?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parallelcnn.errors import GradientError, InputError
from parallelcnn.layers.base import Array, Layer
from parallelcnn.parameters import ParameterLayout
from parallelcnn.workspace import Workspaces

_STEP = 1e-6  # of the central difference; its error, about 1e-12 + 1e-16 / 1e-6, is far below the tolerance


@dataclass(frozen=True)
class GradientCheck:
    """What `gradient_check` found: the largest difference, absolute, and how many numbers were compared."""

    largest_difference: float
    compared: int


def gradient_check(
    layer: Layer, input_shape: Sequence[int], n: int = 2, seed: int = 0, rtol: float = 1e-6, atol: float = 1e-7
) -> GradientCheck:
    """Compare a layer's backward pass with central differences of its forward pass, in float64.

    The loss is sum(dy * forward(x)) for a random dy. Checked are the gradients by every parameter and by x; that
    backward overwrites what stood there before; that it leaves parameters and x alone; that it does without dx; that
    forward and backward rely on nothing that a cache held before forward; that both do with no samples.

    Args:
        layer: any `Layer`; its functions must work in float64.
        input_shape: shape of one input sample, such as (C, H, W).
        n: samples.
        seed: of the random parameters, x and dy.
        rtol, atol: a difference may be atol + rtol * |the number|.

    Raises:
        GradientError: naming the layer, the place and both numbers of the largest difference that is too large.
        ShapeError: if the layer does not take the input shape.
        InputError: if it is no layer.

    Example:
        >>> gradient_check(Conv2D(3, 2, stride=2, activation="tanh"), (2, 5, 6)).largest_difference < 1e-8
        True
    """
    if not isinstance(layer, Layer) or n < 0:
        raise InputError(f"gradient_check takes a Layer and at least 0 samples, got {layer!r} and {n}")
    if n > 0:
        gradient_check(layer, input_shape, 0, seed)  # a rank may have no share of a minibatch
    subject = _Subject(layer, tuple(input_shape), n, np.random.default_rng(seed))
    y = subject.forward()
    dy = subject.rng.normal(size=y.shape)
    params_before, x_before = subject.params.copy(), subject.x.copy()

    dx = np.full(subject.x.shape, np.nan)
    subject.gradients[:] = np.nan
    subject.forward()
    subject.backward(dy, dx)
    gradients = subject.gradients.copy()
    _require_equal(layer, "backward changes the parameters", subject.params, params_before)
    _require_equal(layer, "backward changes x", subject.x, x_before)

    subject.gradients[:] = np.nan
    subject.forward()
    subject.backward(dy, None)
    # Up to rounding: a layer may sum in another order when it has less to do.
    if not np.allclose(subject.gradients, gradients, rtol=1e-9, atol=1e-11, equal_nan=True):
        raise GradientError(f"{layer}: the gradients differ when dx is None")

    largest, compared = 0.0, 0
    for name, numbers, analytic in [
        *((name, values, grads) for (name, values, grads) in subject.named(gradients)),
        ("x", subject.x, dx),
    ]:
        numeric = subject.differentiate(numbers, dy)
        difference = np.abs(analytic - numeric)
        too_large = ~(difference <= atol + rtol * np.abs(numeric))  # a NaN is too large
        if too_large.any():
            worst = np.unravel_index(np.argmax(np.where(np.isnan(difference), np.inf, difference)), numbers.shape)
            place = ", ".join(str(int(i)) for i in worst)
            raise GradientError(
                f"{layer}: backward is not the derivative of forward: d loss / d {name}[{place}] is "
                f"{numeric[worst]:.9g} by difference, but backward says {analytic[worst]:.9g} "
                f"({too_large.sum()} of {numbers.size} numbers of {name} are wrong)"
            )
        largest = max(largest, float(difference.max(initial=0.0)))
        compared += numbers.size
    return GradientCheck(largest, compared)


class _Subject:
    """The layer under examination, with arrays in float64."""

    def __init__(self, layer: Layer, input_shape: tuple[int, ...], n: int, rng: np.random.Generator) -> None:
        self.layer, self.rng = layer, rng
        shapes = (input_shape, layer.output_shape(input_shape))
        self.layout = ParameterLayout((layer.param_shapes(input_shape),))
        self.params = rng.normal(size=self.layout.size)
        self.gradients = np.empty(self.layout.size)
        (self._param_views,) = self.layout.views(self.params)
        (self._grad_views,) = self.layout.views(self.gradients)
        workspaces = Workspaces((layer,), shapes, np.dtype(np.float64))
        workspace = workspaces.get(n)
        self.x, self._y = workspace.activations
        (self._cache,) = workspace.caches
        self.x[...] = rng.normal(size=self.x.shape)

    def forward(self) -> Array:
        self._y[...] = np.nan
        for array in self._cache.values():
            array[...] = np.nan if np.issubdtype(array.dtype, np.floating) else 1
        self.layer.forward(self._param_views, self.x, self._y, self._cache, training=True)
        return self._y

    def backward(self, dy: Array, dx: Array | None) -> None:
        self.layer.backward(self._param_views, self._grad_views, self.x, self._y, self._cache, dy.copy(), dx)

    def named(self, gradients: Array) -> list[tuple[str, Array, Array]]:
        """(name, parameter, its gradient) of every parameter."""
        (gradient_views,) = self.layout.views(gradients)
        return [(name, self._param_views[name], gradient_views[name]) for name in self._param_views]

    def differentiate(self, numbers: Array, dy: Array) -> Array:
        """sum(dy * forward(x)) differentiated by each of `numbers`, an array that forward reads."""
        numeric = np.empty(numbers.shape)
        for place in np.ndindex(numbers.shape):
            value = numbers[place]
            numbers[place] = value + _STEP
            above = np.sum(dy * self.forward())
            numbers[place] = value - _STEP
            below = np.sum(dy * self.forward())
            numbers[place] = value
            numeric[place] = (above - below) / (2 * _STEP)
        return numeric


def _require_equal(layer: Layer, complaint: str, found: Array, wanted: Array) -> None:
    if not np.array_equal(found, wanted, equal_nan=True):
        raise GradientError(f"{layer}: {complaint}")
