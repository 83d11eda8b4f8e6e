"""The NetworkHandler: a tuple of layers, their arrays, and the three motions forward, backward, update.

Outside, images are samples first, (n, C, H, W) or (n, H, W). Inside, the samples are the last axis, (C, H, W, n):
`load` is the door in. The motions themselves are a `Worker`'s: a network has one for each thread.
"""

import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from parallelcnn.activations import find_activation
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.kernels.losses import softmax
from parallelcnn.layers import Conv2D, MaxPool2D
from parallelcnn.layers.base import Array, Layer, Shape
from parallelcnn.layers.maxpool2d import window_and_stride
from parallelcnn.layers.pooled_conv2d import PooledConv2D
from parallelcnn.optimizers import SGD
from parallelcnn.parameters import ParameterLayout
from parallelcnn.worker import Worker
from parallelcnn.workspace import check_memory


class NetworkHandler:
    """Runs a tuple of layers forwards and backwards, and updates their parameters.

    Args:
        layers: the network, first to last.
        input_shape: shape of one sample: (C, H, W) or (features,).
        seed: of the generator that draws the start values.
        dtype: of every array; float64 is for checking gradients.

    Raises:
        ShapeError: if a layer does not take what the layer before it gives, or the network would not fit into memory.

    Attributes:
        params: all parameters, one flat vector.
        gradients: the loss differentiated by them, written by `backward`; a view into `message`.
        message: the vector that is summed over ranks; see `Worker`.
        worker: what `load`, `forward` and `backward` run on.

    Example:
        >>> network = NetworkHandler((Conv2D(6, 3, activation="relu"), Flatten(), Dense(10)), (1, 28, 28))
        >>> network.predict(np.zeros((5, 28, 28), np.uint8)).shape
        (5, 10)
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        input_shape: Sequence[int],
        seed: int = 0,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        if isinstance(layers, Layer):
            raise ShapeError(f"a network takes a tuple of layers, got {layers}")
        self.layers = tuple(layers)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise InputError(f"dtype must be float32 or float64, got {self.dtype}")
        self.shapes, self.layout = plan(self.layers, input_shape)
        self.input_shape = self.shapes[0]
        check_memory("the network's parameters and gradients", 2 * self.layout.size * self.dtype.itemsize)

        self.params = np.zeros(self.layout.size, self.dtype)
        self._params = self.layout.views(self.params)
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise InputError(f"seed must be an integer of at least 0, got {seed!r}")
        rng = np.random.default_rng(seed)
        for layer, params in zip(self.layers, self._params, strict=True):
            layer.init_params(params, rng)

        self._optimizer_state: dict[str, Array] = {}
        self._running = _as_they_run(self.layers)
        self._workers: list[Worker] = []
        (self.worker,) = self.workers(1)
        self.message, self.gradients = self.worker.message, self.worker.gradients

    @property
    def output_shape(self) -> Shape:
        """Shape of one output sample."""
        return self.shapes[-1]

    @property
    def as_it_runs(self) -> list[tuple[Layer, Shape]]:
        """The layers that run, of which one may stand for two of `layers`, each with the shape of its input."""
        return [(layer, self.shapes[place]) for place, layer in self._running.items()]

    def multiply_adds(self, samples: int, *, training: bool) -> int:
        """Multiplications with addition of so many samples, forwards, in training also back; see `Layer`."""
        forward = samples * sum(layer.multiply_adds(shape) for layer, shape in self.as_it_runs)
        return 3 * forward if training else forward

    def load(self, images: Array, indices: Array | None = None) -> Array:
        """Gather samples and bring them into the layout inside; see `Worker.load`."""
        return self.worker.load(images, indices)

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Run the layers; see `Worker.forward`."""
        return self.worker.forward(x, training=training)

    def backward(self, dy: Array) -> None:
        """Run the layers in reverse and overwrite `gradients`; see `Worker.backward`."""
        self.worker.backward(dy)

    def output_gradient(self, n: int) -> Array:
        """The array, (*output_shape, n), that a loss writes its derivative to."""
        return self.worker.output_gradient(n)

    def workers(self, count: int) -> list[Worker]:
        """As many workers, one for each thread. The first is the one that the methods of this class run on."""
        while len(self._workers) < count:
            self._workers.append(Worker(self._running, self.input_shape, self.layout, self._params, self.dtype))
        return self._workers[:count]

    def update(self, optimizer: SGD) -> None:
        """Take one step of the optimiser along `gradients`; what it remembers is kept here, also for another rate."""
        optimizer.update(self.params, self.gradients, self._optimizer_state)

    def check_memory(self, threads: int = 1) -> None:
        """Raise ShapeError unless this machine's memory holds what so many threads write, a block of samples each."""
        self.worker.check_memory()
        check_memory(f"the gradients and activations of {threads} threads", threads * self.worker.nbytes)

    def rest_optimizer(self) -> None:
        """Forget what the optimiser remembers of earlier steps."""
        self._optimizer_state = {}

    @property
    def state(self) -> dict[str, Array]:
        """All that an update changes, by name: the parameters, and the vectors that the optimiser remembers."""
        return {"params": self.params, **self._optimizer_state}

    def set_state(self, state: dict[str, Array]) -> None:
        """Take over what `state` was, here or in another process. Copies.

        Raises:
            ShapeError: see `check_state`.
        """
        self.check_state(state)
        self.params[...] = state["params"]
        self._optimizer_state = {name: vector.copy() for name, vector in state.items() if name != "params"}

    def check_state(self, state: dict[str, Array]) -> None:
        """Raise ShapeError unless each vector is as long as the parameters, and of their type."""
        for name, vector in state.items():
            if vector.shape != self.params.shape or vector.dtype != self.dtype:
                raise ShapeError(
                    f"{name} must be {self.dtype} of shape {self.params.shape}, got {vector.dtype} of {vector.shape}"
                )

    def predict(self, images: Array) -> Array:
        """Class probabilities, the softmax of the network's output.

        Args:
            images: (N, *input_shape), any number; grey images also without their channel axis; uint8 or floats.

        Returns:
            (N, classes).
        """
        images = np.asarray(images)
        if len(self.output_shape) != 1:
            raise ShapeError(f"predict takes a network that ends in (classes,), got {self.output_shape}")
        probabilities = np.empty((len(images), *self.output_shape), self.dtype)
        for start in range(0, max(len(images), 1), self.worker.block_size):
            some = slice(start, start + self.worker.block_size)
            softmax(self.forward(self.load(images[some])), probabilities[some])
        return probabilities

    def summary(self) -> str:
        """The table of layers, output shapes (samples first, any number of them) and parameter counts."""
        rows = [
            ("Layer", "Output shape", "Parameters"),
            ("Input", _any_number(self.input_shape), "0"),
        ]
        for i, layer in enumerate(self.layers):
            rows.append((repr(layer), _any_number(self.shapes[i + 1]), f"{self.layout.count(i):,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        rule = "-" * len(lines[0])
        size = self.layout.size * self.dtype.itemsize / 1024
        total = f"{self.layout.size:,} parameters, {size:,.1f} KiB"
        return "\n".join([rule, lines[0], rule, *lines[1:], rule, total])

    def parameters_sha256(self) -> str:
        """Fingerprint of the parameters: equal if and only if every bit of them is."""
        return hashlib.sha256(self.params.data).hexdigest()

    def state_sha256(self) -> str:
        """Fingerprint of `state`."""
        digest = hashlib.sha256()
        for name, vector in sorted(self.state.items()):
            digest.update(name.encode())
            digest.update(vector.data)
        return digest.hexdigest()


def plan(layers: tuple[Layer, ...], input_shape: Sequence[int]) -> tuple[tuple[Shape, ...], ParameterLayout]:
    """The shapes before, between and after the layers, and where their parameters lie; allocates nothing.

    Raises:
        ShapeError: if a layer does not take what the layer before it gives.
    """
    shapes = _chain_shapes(layers, _checked_input_shape(input_shape))
    inputs = zip(layers, shapes[:-1], strict=True)
    return shapes, ParameterLayout(tuple(layer.param_shapes(shape) for layer, shape in inputs))


def _checked_input_shape(input_shape: Sequence[int]) -> Shape:
    try:
        shape = tuple(operator.index(size) for size in input_shape)
    except TypeError:
        shape = ()
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ShapeError(f"input_shape must be (C, H, W) or (features,) of positive integers, got {input_shape!r}")
    return shape


def _chain_shapes(layers: tuple[Layer, ...], input_shape: Shape) -> tuple[Shape, ...]:
    """Shapes before, between and after the layers; ShapeError where two do not fit."""
    if not layers:
        raise ShapeError("a network takes at least one layer, got none")
    shapes = [input_shape]
    for position, layer in enumerate(layers, start=1):
        if not isinstance(layer, Layer):
            raise ShapeError(f"layer {position} of the network must be a Layer, got {layer!r}")
        try:
            shape = layer.output_shape(shapes[-1])
        except ShapeError as error:
            raise ShapeError(f"layer {position} of {len(layers)}: {error}") from None
        if not (isinstance(shape, tuple) and all(isinstance(size, int | np.integer) and size > 0 for size in shape)):
            raise ShapeError(f"layer {position} of {len(layers)}: {layer} says that its output has shape {shape!r}")
        shapes.append(tuple(map(int, shape)))
    return tuple(shapes)


def _as_they_run(layers: tuple[Layer, ...]) -> dict[int, Layer]:
    """The layers as they run, by the place of their parameters: convolutions together with the pooling behind them.

    The activation between the two moves behind the pooling: f(max(x)) is max(f(x)) where f never decreases, and so are
    the gradients; but after a pooling of 2 x 2 there is a quarter as much to apply it to.
    """
    running = dict(enumerate(layers))
    for i, (layer, after) in enumerate(pairwise(layers)):
        # Only this library's own: a subclass may do anything.
        if not (type(layer) is Conv2D and type(after) is MaxPool2D and after.activation == "identity"):
            continue
        window, stride = window_and_stride(after)
        if window == stride and find_activation(layer.activation).never_decreases:
            pooling = replace(after, activation=layer.activation)
            running[i] = PooledConv2D(replace(layer, activation="identity"), pooling)
            del running[i + 1]
    return running


def _any_number(shape: Shape) -> str:
    return f"({', '.join(['None', *map(str, shape)])})"
