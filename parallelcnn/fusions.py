"""Layer fusion: a fused layer computes several neighbouring layers faster. A network fuses layers automatically.

Fused layers replace layers before the tape is recorded. They use the parameters and buffers of the layers that they
replace: those of the first one by their names, those of the next one as "1.weight", and so on.
"""

import math
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from parallelcnn.activations import find_activation
from parallelcnn.errors import ShapeError
from parallelcnn.kernels import conv2d as kernels
from parallelcnn.kernels import maxpool2d as pooling_kernels
from parallelcnn.kernels import windows as window_kernels
from parallelcnn.kernels.batch_norm import fold
from parallelcnn.kernels.load import AT_ONCE, load_windows
from parallelcnn.layers.base import Array, Layer, Parameter, Shape, Step
from parallelcnn.layers.batch_norm import BatchNorm
from parallelcnn.layers.composite import Composite, Layers, Replaced, Sequential
from parallelcnn.layers.concat import Concat
from parallelcnn.layers.conv2d import Conv2D, windows_of
from parallelcnn.layers.conv_algorithms import Direct, as_rows, select
from parallelcnn.layers.conv_windows import NO_BIAS, Algorithm
from parallelcnn.layers.depthwise_conv2d import DepthwiseConv2D
from parallelcnn.layers.flip_crop import RandomCrop, RandomFlip, WindowLayer
from parallelcnn.layers.frozen import thawed
from parallelcnn.layers.maxpool2d import MaxPool2D, argmax_type, window_and_stride
from parallelcnn.layers.normalize import Normalize
from parallelcnn.layers.pooling import padding_of
from parallelcnn.layers.recompute import Recompute
from parallelcnn.layers.residual import Residual

# Only this library's own classes: a subclass may behave differently.
COMPOSITES = (Sequential, Residual, Concat, Recompute)
CONVOLUTIONS = (Conv2D, DepthwiseConv2D)


def fuse(layers: Layers, *, training: bool) -> dict[int, Layer]:
    """The layers of a network that run, in training or in prediction. Each key is the index of the first layer that is
    replaced; the others are those up to the next key.
    """
    bare = tuple(map(thawed, layers))
    loaded = _loaded_first(bare, training=training)
    front: dict[int, Layer] = {0: PreparedImages(bare[:loaded])} if loaded else {}
    return front | _fuse_from(loaded, bare, training=training)


def _fuse_from(i: int, bare: Layers, *, training: bool) -> dict[int, Layer]:
    """As `fuse`, for the layers from the i-th on, none of them frozen."""
    running: dict[int, Layer] = {}
    while i < len(bare):
        running[i], replaced = _fuse_first(*bare[i:], training=training)
        i += replaced
    return running


def _fuse_first(layer: Layer, *others: Layer, training: bool) -> tuple[Layer, int]:
    """The layer that runs in place of the first ones, and how many it replaces."""
    if isinstance(layer, Composite) and type(layer) in COMPOSITES:
        return layer.map_rows(partial(_fuse_row, training=training)), 1
    if not isinstance(layer, Conv2D | DepthwiseConv2D) or type(layer) not in CONVOLUTIONS:
        return layer, 1
    after = others[0] if others else None
    if training or layer.activation != "identity" or type(after) is not BatchNorm:
        return _pool_first(layer, *others)
    folded, replaced = _pool_first(replace(layer, activation=after.activation, bias=True), *others[1:])
    return FoldedConv2D(folded, after.epsilon), replaced + 1


def _loaded_first(bare: Layers, *, training: bool) -> int:
    """How many of the first layers `load` can compute: flips and crops, at most one of each, then a normalisation."""
    kinds: list[type] = []
    for layer in bare:
        kind = type(layer)
        if isinstance(layer, Normalize) and kind is Normalize and not layer.is_auto:
            return len(kinds) + 1
        if kind not in (RandomFlip, RandomCrop) or kind in kinds:
            break
        kinds.append(kind)
    return len(kinds) if training else 0


def _fuse_row(layers: Layers, *, training: bool) -> Layers:
    """As `fuse`, for a row of layers inside another layer. The layers keep their places, and so their names."""
    running = _fuse_from(0, tuple(map(thawed, layers)), training=training)
    return tuple(running.get(i, Replaced()) for i in range(len(layers)))


def _pool_first(layer: Conv2D | DepthwiseConv2D, *others: Layer) -> "tuple[Convolution, int]":
    """As `_fuse_first`, for a convolution and the pooling that may follow."""
    after = others[0] if others else None
    if type(after) is not MaxPool2D or type(layer) is not Conv2D or not _can_be_pooled(layer, after):
        return layer, 1
    return PooledConv2D(replace(layer, activation="identity"), replace(after, activation=layer.activation)), 2


def _can_be_pooled(convolution: Conv2D, pooling: MaxPool2D) -> bool:
    """Whether the two can be fused, with the activation f after pooling. For a monotonic f, f(max(x)) = max(f(x)),
    and the gradients are equal, too. After pooling of 2 x 2, f is applied to a quarter of the numbers.
    """
    window, stride = window_and_stride(pooling)
    monotonic = find_activation(convolution.activation).monotonic
    plain = convolution.groups == 1 and convolution.dilation in (1, (1, 1)) and pooling.activation == "identity"
    side_by_side = window == stride and not any(padding_of(pooling))
    return plain and monotonic and side_by_side and pooling_kernels.is_tiled(*window)


@dataclass(frozen=True, repr=False)
class PreparedImages(Layer):
    """The first layers of a network, which `load` computes while it gathers samples: one pass over the images of uint8
    gathers, crops, flips, scales and normalises.

    Args:
        layers: `RandomFlip` and `RandomCrop`, at most one of each, then `Normalize`; any of them may be missing.
    """

    layers: Layers

    def output_shape(self, input_shape: Shape) -> Shape:
        for layer in self.layers:
            input_shape = layer.output_shape(input_shape)
        return input_shape

    def forward(self, step: Step, x: Array) -> Array:
        y, windows = step.array(x.shape[:-1]), step.array((4,), np.int64)
        C, *sides = x.shape[:-1]
        shape = (C, *sides) if len(sides) == 2 else (C, math.prod(sides), 1)  # a vector is an image of one pixel
        calls: list[tuple[Any, ...]] = [(window_kernels.whole_windows, windows)]
        mean, factor = np.zeros(shape[0], step.dtype), np.ones(shape[0], step.dtype)
        for i, layer in enumerate(self.layers):
            if isinstance(layer, Normalize):
                mean, factor = layer.mean_and_factor(shape[0], step.dtype)
            elif isinstance(layer, WindowLayer) and step.training and layer.is_active:
                calls.append(layer.draw(step.keys, step.number + i, shape, windows))
        images = (*shape, step.n)
        for call in calls:
            step.call(*call)
        how, places = (windows, mean, factor), np.empty((AT_ONCE, 4), np.int64)
        step.call(window_kernels.take_windows, x.reshape(images), *how, y.reshape(images))
        step.load_by(calls, partial(_load_windows, (*how, places, y.reshape(images))), y)
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        raise NotImplementedError(f"{self} has no backward pass: no layer before it is trained")


def _load_windows(how: tuple[Array, ...], images: Array, indices: Array, scale: float) -> None:
    load_windows(images, indices, scale, *how)


@dataclass(frozen=True, repr=False)
class PooledConv2D(Layer):
    """A `Conv2D` fused with a `MaxPool2D` whose windows do not overlap.

    Outputs of the convolution that no pooling window covers are not computed. In the direct algorithm, the output
    before pooling stays in the nearest cache, and so does its gradient in a first layer: a step of the paper's network
    takes about 15 % less time than with two layers. The other algorithms write the whole output to memory.

    Args:
        convolution: the convolution, without an activation.
        pooling: the pooling, with the activation.
    """

    convolution: Conv2D
    pooling: MaxPool2D

    def __post_init__(self) -> None:
        window, stride = window_and_stride(self.pooling)
        if self.convolution.activation != "identity" or window != stride or any(padding_of(self.pooling)):
            raise ShapeError(f"{self} takes a convolution without activation and windows side by side, without padding")

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.pooling.output_shape(self.convolution.output_shape(input_shape))

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        return self.convolution.parameters(input_shape)

    def multiply_adds(self, input_shape: Shape) -> int:
        return math.prod(self._seen(input_shape)) * input_shape[0] * math.prod(self._window())

    def forward(self, step: Step, x: Array) -> Array:
        weight, bias = step.params["weight"], step.params.get("bias", NO_BIAS[step.dtype])
        window, stride = window_and_stride(self.pooling)
        y = step.array(self.output_shape(x.shape[:-1]))
        argmax = step.array(y.shape[:-1], argmax_type(window))
        algorithm = self._algorithm(step, x)
        if isinstance(algorithm, Direct):
            image = algorithm.arrange(step, x)
            packed = step.scratch((kernels.scratch_size(*weight.shape),))
            kernel = kernels.pooled_forward_kernel(
                algorithm.columns.window, algorithm.columns.stride, len(weight), *window
            )
            band = self._band(step, kernels.block_size(len(weight)), x)
            step.call(kernel, as_rows(image), weight, bias, packed, *algorithm.steps(image), band, y, argmax)
        else:
            unpooled = step.array(self._seen(x.shape[:-1]))
            image = algorithm.forward(step, weight, bias, x, unpooled)
            step.call(pooling_kernels.forward_kernel(*window), unpooled, *stride, y, argmax)
        step.save(x, image, argmax, find_activation(self.pooling.activation).record_forward(step, y))
        return y

    def backward(self, step: Step, dy: Array) -> Array | None:
        x, image, argmax, kept = step.saved
        find_activation(self.pooling.activation).record_backward(step, kept, dy, step.grads.get("bias"))
        algorithm = self._algorithm(step, x)
        if isinstance(algorithm, Direct) and not step.needs_input_gradient:
            self._record_weight_gradient(step, algorithm, x, image, dy, argmax)
            return None
        unpooled = step.array(self._seen(x.shape[:-1]))
        window, stride = window_and_stride(self.pooling)
        step.call(pooling_kernels.backward_kernel(*window, True), dy, argmax, *stride, unpooled)
        return self.convolution.record_gradients(step, x, image, unpooled)

    def _record_weight_gradient(
        self, step: Step, algorithm: Direct, x: Array, image: Array, dy: Array, argmax: Array
    ) -> None:
        """For a first layer, which needs no dx and so does not need the whole gradient before pooling."""
        window, _ = window_and_stride(self.pooling)
        kernel = kernels.pooled_weight_gradient_kernel(*self._window(), algorithm.columns.stride, len(dy), *window)
        zeros = step.scratch((math.prod(image.shape[2:]),))
        band = self._band(step, kernels.pooled_weight_gradient_block(*self._window(), len(dy)), x)
        steps = algorithm.steps(image)
        step.call(kernel, as_rows(image), dy, argmax, zeros, *steps, band, step.grads["weight"])

    def _band(self, step: Step, channels: int, x: Array) -> Array:
        """An array for the rows before pooling that one row after pooling depends on."""
        (rows, _), _ = window_and_stride(self.pooling)
        return step.array((channels, rows, self._seen(x.shape[:-1])[2]))

    def _seen(self, input_shape: Shape) -> Shape:
        """Shape of the pooling's input, without the rows and columns that no window covers."""
        K, P, Q = self.output_shape(input_shape)
        (R, S), _ = window_and_stride(self.pooling)
        return (K, P * R, Q * S)

    def _algorithm(self, step: Step, x: Array) -> Algorithm:
        seen = (*self._seen(x.shape[:-1]), step.n)
        windows = windows_of(self.convolution, x.shape[:-1])
        return select(windows, step.params["weight"].shape, x.shape, seen, computed=seen, rounds=step.bfloat16)

    def _window(self) -> tuple[int, int]:
        size = self.convolution.kernel_size
        return size if isinstance(size, tuple) else (size, size)


Convolution = Conv2D | DepthwiseConv2D | PooledConv2D


@dataclass(frozen=True, repr=False)
class FoldedConv2D(Layer):
    """A convolution and a `BatchNorm` in prediction: one convolution, with weights computed from those of both.

    With running statistics, batch normalisation is a linear function of each channel. Computing the weights takes one
    multiplication for each.

    Args:
        convolution: the convolution, with a bias and the activation of the batch normalisation; it may be pooled.
        epsilon: that of the batch normalisation.
    """

    convolution: Convolution
    epsilon: float

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.convolution.output_shape(input_shape)

    def forward(self, step: Step, x: Array) -> Array:
        weight, bias = step.params["weight"], step.params.get("bias", NO_BIAS[step.dtype])
        folded = copy(step)
        folded.params = {"weight": step.scratch(weight.shape), "bias": step.scratch(weight.shape[:1])}
        rows = len(weight), math.prod(weight.shape[1:])
        scale = step.params["1.weight"], step.params["1.bias"], float(self.epsilon)
        statistics = step.buffers["1.running_mean"], step.buffers["1.running_var"]
        written = folded.params["weight"].reshape(rows), folded.params["bias"]
        step.call(fold, weight.reshape(rows), bias, *scale, *statistics, *written)
        return self.convolution.forward(folded, x)

    def backward(self, step: Step, dy: Array) -> Array | None:
        raise NotImplementedError(f"{self} has no backward pass: it runs in prediction only")
