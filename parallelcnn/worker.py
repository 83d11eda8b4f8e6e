"""A worker: what one thread writes when it runs a network forwards and backwards. The parameters are shared."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from parallelcnn.call_list import join
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.kernels.load import all_within
from parallelcnn.kernels.load import load as load_kernel
from parallelcnn.layers.base import Array, Arrays, Call, Layer, Shape
from parallelcnn.parameters import ParameterLayout
from parallelcnn.workspace import Workspace, Workspaces

LOSS, LEAVE = -2, -1  # the last places of a message
_CACHE_BYTES = 1 << 20  # of a core's own, which holds what a layer reads and writes
_LANES = 16  # samples: multiples of it fill a vector, and begin where a cache line begins


class Worker:
    """Activations, caches and gradients of its own, over parameters that all workers of a network read.

    Args:
        layers: the network, as it runs, by the place of each layer in the layout of the parameters.
        input_shape: of one sample.
        layout: of the parameters.
        params: for each place, the parameters by name.
        dtype: of every array.

    Attributes:
        gradients: the loss differentiated by the parameters, one flat vector, written by `backward`; a view into
            `message`.
        message: the vector that is summed over workers and ranks: the gradients, the loss in place LOSS, and in
            place LEAVE how many ranks want to leave.
    """

    _by_layer = False  # whether it must be known when each layer is done

    def __init__(
        self,
        layers: dict[int, Layer],
        input_shape: Shape,
        layout: ParameterLayout,
        params: Sequence[Arrays],
        dtype: np.dtype,
    ) -> None:
        self.message = np.zeros(layout.size + 2, dtype)
        self.gradients = self.message[:LOSS]
        grads = layout.views(self.gradients)
        self._layers = tuple(layers.values())
        self._params = [params[place] for place in layers]
        self._grads = [grads[place] for place in layers]
        self._input_shape, self._dtype = input_shape, dtype
        shapes = [input_shape]
        for layer in self._layers:
            shapes.append(layer.output_shape(shapes[-1]))
        self._workspaces = Workspaces(self._layers, shapes, dtype)
        self._labels = np.empty(0)
        self.block_size = _block_size(shapes, dtype)
        self._block_sums: Array | None = None

    def blocks(self, samples: Array) -> Iterator[Array]:
        """The samples in blocks of about equal size, at most `block_size`: one where there are so few, or none.

        What `message` holds after each is added up; when there are no more, it holds the sum.
        """
        count = max(-(-len(samples) // self.block_size), 1)
        if count == 1:
            yield samples
            return
        size = min(_LANES * -(-len(samples) // (count * _LANES)), self.block_size)
        if self._block_sums is None:
            self._block_sums = np.empty_like(self.message)
        self._block_sums[...] = 0
        for start in range(0, len(samples), size):
            yield samples[start : start + size]
            np.add(self._block_sums, self.message, out=self._block_sums)
        self.message[...] = self._block_sums

    def load(self, images: Array, indices: Array | None = None) -> Array:
        """Gather samples, scale uint8 to [0, 1], and bring them into the layout inside.

        Args:
            images: (N, *input_shape); grey images also without their channel axis. uint8, or floats taken as they are.
            indices: (n,), which of them; None: all.

        Returns:
            (*input_shape, n), valid until the next call.

        Raises:
            ShapeError: if the images are not of the network's input shape.
            InputError: for images of another type, or indices outside them.
        """
        images = np.asarray(images)
        shape = images.shape[1:]
        if shape != self._input_shape and (1, *shape) != self._input_shape:
            raise ShapeError(f"the network takes images of shape {self._input_shape}, got {shape}")
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            raise InputError(f"images must be uint8, or floats taken as they are, got {images.dtype}")
        if indices is None:
            indices = np.arange(len(images))
        elif not all_within(indices, len(images)):
            raise InputError(f"indices must lie in [0, {len(images)}), got {indices.min()} to {indices.max()}")
        if images.dtype not in (np.uint8, self._dtype) or not images.flags.c_contiguous:
            images = np.ascontiguousarray(images[indices], np.uint8 if images.dtype == np.uint8 else self._dtype)
            indices = np.arange(len(images))
        x = self._workspaces.get(len(indices)).activations[0]
        features = math.prod(self._input_shape)
        scale = self._dtype.type(1 / 255 if images.dtype == np.uint8 else 1)
        load_kernel(images.reshape(len(images), features), indices, scale, x.reshape(features, len(indices)))
        return x

    def load_labels(self, labels: Array, indices: Array) -> Array:
        """Gather the labels of the samples that `load` has loaded, into memory that is allocated once.

        Args:
            labels: (N,) or (N, outputs).
            indices: (n,), which of them; `load` has checked that they are there.

        Returns:
            (n,) or (n, outputs), valid until the next call.
        """
        n, kept = len(indices), self._labels
        if len(kept) < n or kept.dtype != labels.dtype or kept.shape[1:] != labels.shape[1:]:
            self._labels = np.empty((n, *labels.shape[1:]), labels.dtype)
        # "clip" changes no index, but otherwise numpy gathers into an array of its own first.
        return labels.take(indices, 0, self._labels[:n], "clip")

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Run the layers.

        Args:
            x: (*input_shape, n), as `load` returns it.
            training: layers that behave differently in training do so.

        Returns:
            (*output_shape, n), valid until the next call.
        """
        workspace = self._workspaces.get(x.shape[-1])
        activations = workspace.activations
        if x is not activations[0]:
            activations[0][...] = x
        self._run(self._calls(workspace, "training" if training else "forward"))
        return activations[-1]

    def backward(self, dy: Array) -> None:
        """Run the layers in reverse, after `forward` of the same samples, and overwrite `gradients`.

        Args:
            dy: the loss differentiated by what `forward` returned, of the same shape; best in
                `output_gradient`, which is overwritten.
        """
        workspace = self._workspaces.get(dy.shape[-1])
        doutput = self.output_gradient(dy.shape[-1])
        if dy is not doutput:
            doutput[...] = dy
        self._run(self._calls(workspace, "backward"))

    def output_gradient(self, n: int) -> Array:
        """The array, (*output_shape, n), that a loss writes its derivative to."""
        doutput = self._workspaces.get(n).dactivations[-1]
        assert doutput is not None
        return doutput

    def _calls(self, workspace: Workspace, name: str) -> list[list[Call]]:
        """What a pass consists of, listed when it is first made: "forward", "training" (forward, in it) or "backward".

        In as many parts as there are layers if each is to be told from the next, else in one.
        """
        key = f"{name} by layer" if self._by_layer else name
        if key not in workspace.calls:
            if name == "backward":
                parts = self._bind_backward(workspace)
            else:
                parts = self._bind_forward(workspace, training=name == "training")
            if not self._by_layer:
                parts = [[call for part in parts for call in part]]
            # Predictions may be of any number of samples, and of each but once: joining would not pay.
            workspace.calls[key] = parts if name == "forward" else [join(part) for part in parts]
        return workspace.calls[key]

    def _bind_forward(self, workspace: Workspace, *, training: bool) -> list[list[Call]]:
        """For each layer its calls."""
        calls = []
        for i, layer in enumerate(self._layers):
            x, y, cache = workspace.activations[i], workspace.activations[i + 1], workspace.caches[i]
            calls.append(layer.bind_forward(self._params[i], x, y, cache, training=training))
        return calls

    def _bind_backward(self, workspace: Workspace) -> list[list[Call]]:
        """For each layer, the last one first, its calls."""
        calls = []
        for i, layer in reversed(list(enumerate(self._layers))):
            x, y, cache = workspace.activations[i], workspace.activations[i + 1], workspace.caches[i]
            dx, dy = workspace.dactivations[i], workspace.dactivations[i + 1]
            assert dy is not None  # only the first layer has no dx
            calls.append(layer.bind_backward(self._params[i], self._grads[i], x, y, cache, dy, dx))
        return calls

    def _run(self, parts: list[list[Call]]) -> None:
        for part in parts:
            for call in part:
                call()

    def check_memory(self) -> None:
        """Raise ShapeError if what the layers write for a block of samples does not fit into this machine's memory."""
        self._workspaces.check_memory(self.block_size)

    @property
    def nbytes(self) -> int:
        """How much memory it takes for a block of samples."""
        return self.message.nbytes + self._workspaces.bytes_for(self.block_size)


def _block_size(shapes: Sequence[Shape], dtype: np.dtype) -> int:
    """How many samples to take through the layers at once: few enough that what one layer writes is still in the cache
    when the next one reads it, and enough to fill vectors and outweigh the calls.

    100 samples through 64-128-256 channels, convolved directly: 6.8 ms a sample in blocks of 32, 10.1 ms at once; 1024
    through the paper's network: 9.8 us in blocks of 128, 11.7 us of 32. Chosen by shape alone, so that the same seed
    gives the same bits.
    """
    largest = max(math.prod(x) + math.prod(y) for x, y in pairwise(shapes)) * dtype.itemsize
    return min(max(_CACHE_BYTES // largest // _LANES * _LANES, 2 * _LANES), 8 * _LANES)
