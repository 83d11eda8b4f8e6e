"""Check a layer's backward pass against finite differences of its forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parallelcnn.errors import GradientError, InputError
from parallelcnn.kernels.random import sample_keys
from parallelcnn.layers.base import Array, Layer
from parallelcnn.parameters import ArrayLayout
from parallelcnn.tape import LayerArrays, Recordable, Tape, aligned, plan_tape

_STEP = 1e-6  # of the central difference; its error, about 1e-12 + 1e-16 / 1e-6, is far below the tolerance


@dataclass(frozen=True)
class GradientCheck:
    """The result of `gradient_check`: the largest absolute difference, and how many numbers were compared."""

    largest_difference: float
    compared: int


def gradient_check(
    layer: Layer, input_shape: Sequence[int], n: int = 2, seed: int = 0, rtol: float = 1e-6, atol: float = 1e-7
) -> GradientCheck:
    """Compare a layer's backward pass with central differences of its forward pass, in float64.

    The loss is sum(dy * forward(x)) for a random dy, in training. The check covers the gradients of x and of
    trained parameters. It also checks that backward overwrites earlier gradients; that the passes change neither
    parameters nor x; that backward gives the same gradients if dx is not needed, and if arrays share memory; that the
    passes read no memory before they write it; and that both work without samples.

    Args:
        layer: any `Layer`. The functions that it calls must work in float64.
        input_shape: shape of one input sample, such as (C, H, W).
        n: number of samples.
        seed: seed of the random parameters, x and dy.
        rtol, atol: tolerance; differences up to atol + rtol * |number| are accepted.

    Raises:
        GradientError: if a difference is larger. It names the layer, the place and both numbers of the largest one.
        ShapeError: if the layer does not accept the input shape.
        InputError: if `layer` is not a layer.

    Example:
        >>> gradient_check(Conv2D(3, 2, stride=2, activation="tanh"), (2, 5, 6)).largest_difference < 1e-8
        True
    """
    if not isinstance(layer, Layer) or n < 0:
        raise InputError(f"gradient_check takes a Layer and at least 0 samples, got {layer!r} and {n}")
    if n > 0:
        gradient_check(layer, input_shape, 0, seed)  # a rank may have no samples of a minibatch
    subject = _Subject(layer, tuple(input_shape), n, np.random.default_rng(seed))
    x_before, params_before = subject.x.copy(), subject.params.copy()
    subject.run(subject.tape)
    dx, gradients = subject.dx.copy(), subject.gradients.copy()
    _require_equal(layer, "forward or backward changes the parameters", subject.params, params_before)
    _require_equal(layer, "forward or backward changes x", subject.tape.x, x_before)
    for complaint, needs_input_gradient, shared in (
        ("the gradients differ where nobody needs dx", False, False),
        ("the gradients differ where arrays share memory: some are used that no call names", True, True),
    ):
        subject.run(subject.record(needs_input_gradient=needs_input_gradient, shared=shared))
        # Not bit for bit: a layer may sum in another order if it computes no dx.
        if not np.allclose(subject.gradients, gradients, rtol=1e-9, atol=1e-11, equal_nan=True):
            raise GradientError(f"{layer}: {complaint}")

    largest, compared = 0.0, 0
    for name, numbers, analytic in [
        *((name, values, grads) for (name, values, grads) in subject.named(gradients)),
        ("x", subject.x, dx),
    ]:
        numeric = subject.differentiate(numbers)
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
    """The layer to check, with arrays in float64."""

    def __init__(self, layer: Layer, input_shape: tuple[int, ...], n: int, rng: np.random.Generator) -> None:
        self._layer, self._n = layer, n
        self._shapes = (input_shape, layer.output_shape(input_shape))
        parameters, buffers = layer.parameters(input_shape), layer.buffers(input_shape)
        self.layout = ArrayLayout.of([parameters])
        self.params = rng.normal(size=self.layout.size)
        self.gradients = np.empty(self.layout.trained.size)
        (self._params,), (self._grads,) = self.layout.views(self.params), self.layout.trained.views(self.gradients)
        self._buffers = {name: np.full(one.shape, one.initial, np.float64) for name, one in buffers.items()}
        self.x = rng.normal(size=(*input_shape, n))
        self.dy = rng.normal(size=(*self._shapes[1], n))
        self.dx = np.empty(self.x.shape)
        self._keys = np.empty(n, np.uint64)
        sample_keys(0, np.arange(n), self._keys)
        self.tape = self.record(needs_input_gradient=True, shared=False)

    def record(self, *, needs_input_gradient: bool, shared: bool) -> Tape:
        """Record a tape. If `shared`, arrays may share memory."""
        statistics = {name: np.zeros_like(array) for name, array in self._buffers.items()}
        arrays = LayerArrays(self._params, self._grads, self._buffers, statistics)
        last_backward = -1 if needs_input_gradient else 0
        what = Recordable((self._layer,), (0,), self._shapes, (arrays,), last_backward, np.dtype(np.float64))
        plan = plan_tape(what, self._n, training=True, shared=shared)
        memory = aligned(plan.size)
        memory[...] = 0xFF  # a NaN in float64
        return Tape(what, self._n, plan, memory, training=True)

    def run(self, tape: Tape) -> None:
        """Run both passes. They write `gradients` and `dx`."""
        self.gradients[:] = np.nan
        self.forward(tape)
        tape.dy[...] = self.dy
        for call in tape.backward:
            call()
        if tape.dx is not None:
            self.dx[...] = tape.dx

    def forward(self, tape: Tape) -> Array:
        tape.x[...] = self.x
        if tape.keys is not None:
            tape.keys[...] = self._keys
        for call in tape.forward:
            call()
        return tape.y

    def named(self, gradients: Array) -> list[tuple[str, Array, Array]]:
        """(name, parameter, its gradient) of every trained parameter."""
        (gradient_views,) = self.layout.trained.views(gradients)
        return [(name, self._params[name], gradient) for name, gradient in gradient_views.items()]

    def differentiate(self, numbers: Array) -> Array:
        """The gradient of the loss with respect to `numbers`, an array that forward reads, by central differences."""
        numeric = np.empty(numbers.shape)
        for place in np.ndindex(numbers.shape):
            value = numbers[place]
            numbers[place] = value + _STEP
            above = np.sum(self.dy * self.forward(self.tape))
            numbers[place] = value - _STEP
            below = np.sum(self.dy * self.forward(self.tape))
            numbers[place] = value
            numeric[place] = (above - below) / (2 * _STEP)
        return numeric


def _require_equal(layer: Layer, complaint: str, found: Array, wanted: Array) -> None:
    if not np.array_equal(found, wanted, equal_nan=True):
        raise GradientError(f"{layer}: {complaint}")
