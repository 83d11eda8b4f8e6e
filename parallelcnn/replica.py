"""A replica: the arrays that one thread writes when it runs a network. The parameters are shared."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise

import numpy as np

from parallelcnn.errors import InputError, ShapeError
from parallelcnn.files.rows import ChosenRows, FileRows, Rows
from parallelcnn.kernels.load import all_within
from parallelcnn.kernels.load import load as load_kernel
from parallelcnn.kernels.random import sample_keys
from parallelcnn.label_mixing import LabelMixer
from parallelcnn.layers.base import Array, Call, Layer, Shape
from parallelcnn.layers.step import merged
from parallelcnn.losses import Loss
from parallelcnn.parameters import ArrayLayout
from parallelcnn.resources import check_memory
from parallelcnn.tape import LayerArrays, Recordable, Tape, aligned, calls_of, plan_tape

LOSS, STOP = -2, -1  # indices of the last elements of the reduction buffer
_CACHE_BYTES = 1 << 20  # of one core's cache, which should hold the input and output of a layer
_LANES = 16  # samples; multiples of it fill whole vectors and start on a cache line
# With other numbers of samples, rows do not start on cache lines. So the few samples beyond a multiple get a block of
# their own, if the others are so many and cost so much: 100 samples train 1.07 times as fast in the paper's network and
# in LeNet-5 (AVX-512). With less work, the calls of another block cost more. In bfloat16 it does not pay.
_FEWEST_TO_SPLIT, _LEAST_TO_SPLIT = 48, 10**7  # samples, multiply-adds of the forward pass


class Replica:
    """The activations, gradients and reduction buffer of one thread. All replicas of a network share its parameters.

    Args:
        layers: the layers that run in training. Each key is the index, in the layout, of the first layer that it stands
            for; the others are those up to the next key. See `fusions`.
        input_shape: shape of one sample.
        layouts: layouts of the parameters and of the buffers.
        params, buffers: for each index of the layout, the arrays by name.
        dtype: type of all arrays.
        predicting: the layers that run in prediction; None: those of training.
        bfloat16: whether training multiplies numbers rounded to bfloat16; see `Step.bfloat16`.
        shares_memory: whether arrays that are never needed at the same time share memory. If not, `outputs` holds the
            output of every layer.

    Attributes:
        reduction_buffer: the vector that is summed over replicas and ranks: gradients, statistics, the loss at index
            LOSS, and at index STOP the sum of the ranks' requests to save or stop; see `training.loop`.
        gradients: gradients of the trained parameters, one flat vector; a view into `reduction_buffer`.
        statistics: sums that layers with buffers write, one flat vector; a view into `reduction_buffer`.
        block_size: number of samples to run at once; see `blocks`.
    """

    _by_layer = False  # whether to run the calls layer by layer, so that each layer can be timed

    def __init__(
        self,
        layers: dict[int, Layer],
        input_shape: Shape,
        layouts: tuple[ArrayLayout, ArrayLayout],
        params: Sequence[dict[str, Array]],
        buffers: Sequence[dict[str, Array]],
        dtype: np.dtype,
        predicting: dict[int, Layer] | None = None,
        *,
        bfloat16: bool = False,
        shares_memory: bool = True,
    ) -> None:
        trained = layouts[0].trained
        n_params, n_statistics = trained.size, layouts[1].size
        self.reduction_buffer = np.zeros(n_params + n_statistics + 2, dtype)
        self.gradients = self.reduction_buffer[:n_params]
        self.statistics = self.reduction_buffer[n_params:LOSS]
        grads, statistics = trained.views(self.gradients), layouts[1].views(self.statistics)
        kept = tuple(map(LayerArrays, params, grads, buffers, statistics))
        self._recordable = _recordable(layers, input_shape, kept, dtype, bfloat16=bfloat16)
        self._predicting = self._recordable if predicting is None else _recordable(predicting, input_shape, kept, dtype)
        self._memory, self._shares_memory = aligned(0), shares_memory
        self._tapes: dict[tuple[int, bool], Tape] = {}
        self._labels = np.empty(0)
        self._sample_weight = np.empty(0)
        self._mixes_samples = any(layer.mixes_samples for layer in layers.values())
        self.block_size = _block_size(self._recordable.shapes, dtype, bfloat16=bfloat16)
        self._sum: Array | None = None
        self._mixer = LabelMixer()

    @property
    def input_shape(self) -> Shape:
        """Shape of one input sample."""
        return self._recordable.shapes[0]

    def tape(self, n: int, *, training: bool) -> Tape:
        """The tape for n samples. The first call for this n records it.

        Raises:
            ShapeError: if the arrays of the tape do not fit into memory.
        """
        tape = self._tapes.get((n, training))
        if tape is None:
            recordable = self._recordable if training else self._predicting
            plan = plan_tape(recordable, n, training=training, shared=self._shares_memory)
            if plan.size > self._memory.nbytes:
                check_memory(f"the network's activations for {n} samples", plan.size)
                self._tapes.clear()  # they would keep the old memory alive
                self._memory = aligned(plan.size)
            tape = Tape(recordable, n, plan, self._memory, training=training)
            self._tapes[n, training] = tape
        return tape

    def calls(self, n: int, *, training: bool) -> list[Call]:
        """The calls of the tape for n samples, with arguments of the same types. They must not be run."""
        return calls_of(self._recordable if training else self._predicting, n, training=training)

    def blocks(self, samples: Array) -> Iterator[Array]:
        """Cut the samples into blocks of `block_size`; the last one has what remains. One block if layers mix samples,
        and none without samples.

        A large last block is cut once more, behind its whole vectors: see `_FEWEST_TO_SPLIT`.

        The contents of `reduction_buffer` after each block are added up. At the end it holds the sum.
        """
        if len(samples) == 0:
            self.reduction_buffer[...] = 0
            return
        if self._mixes_samples:
            yield samples
            return
        last = (len(samples) - 1) // self.block_size * self.block_size  # where the last block begins
        whole = len(samples) - len(samples) % _LANES
        splits = whole < len(samples) and self._is_worth_a_split(whole - last)
        if last == 0 and not splits:
            yield samples
            return
        starts = chain(range(0, last + 1, self.block_size), [whole] * splits, [len(samples)])
        yield from self.summed(samples[start:end] for start, end in pairwise(starts))

    def _is_worth_a_split(self, samples: int) -> bool:
        """Whether so many samples, which fill vectors, should not share a block with the few that remain."""
        if self._recordable.bfloat16 or samples < _FEWEST_TO_SPLIT:
            return False
        return samples * self._multiply_adds >= _LEAST_TO_SPLIT

    @cached_property
    def _multiply_adds(self) -> int:
        """Multiply-adds of the forward pass for one sample."""
        layers, shapes = self._recordable.layers, self._recordable.shapes
        return sum(layer.multiply_adds(shape) for layer, shape in zip(layers, shapes[:-1], strict=True))

    def summed(self, pieces: Iterable[Array]) -> Iterator[Array]:
        """As `blocks`, for blocks of any sizes, or none."""
        if self._sum is None:
            self._sum = np.empty_like(self.reduction_buffer)
        done = 0
        for piece in pieces:
            if done == 1:
                self._sum[...] = self.reduction_buffer
            elif done > 1:
                self._sum += self.reduction_buffer
            yield piece
            done += 1
        if done == 0:
            self.reduction_buffer[...] = 0
        elif done > 1:
            self.reduction_buffer += self._sum

    def load(
        self,
        images: Array,
        indices: Array | None = None,
        *,
        training: bool = False,
        key: int = 0,
        fused: bool = False,
    ) -> Array:
        """Gather samples, scale uint8 to [0, 1], and convert them to the internal layout.

        Args:
            images: (N, *input_shape); grey images may omit the channel axis. uint8, or floats, which are not scaled.
            indices: (n,), indices of the images to load; None: all.
            training: whether a forward pass in training follows.
            key: key of the random numbers of this pass, a function of seed and epoch.
            fused: whether to run the first layers as well, if they are fused with loading; see `fusions`. Then hand the
                returned array itself to `forward`, which leaves these layers out.

        Returns:
            (*input_shape, n), valid until the next call.

        Raises:
            ShapeError: if the images do not have the network's input shape.
            InputError: if the images have another type, or an index is out of range.
        """
        in_file = isinstance(images, FileRows)
        images = images if isinstance(images, Rows) else np.asarray(images)
        shape = images.shape[1:]
        if shape != self.input_shape and (1, *shape) != self.input_shape:
            raise ShapeError(f"the network takes images of shape {self.input_shape}, got {shape}")
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise InputError(f"images must be uint8, or floats taken as they are, got {images.dtype}")
        if indices is None:
            indices = np.arange(len(images))
        elif not all_within(indices, len(images)):
            raise InputError(f"indices must lie in [0, {len(images)}), got {indices.min()} to {indices.max()}")
        tape = self.tape(len(indices), training=training)
        loading = tape.loading if fused else None
        if loading is not None:
            loading.draw(key, indices)
        elif tape.keys is not None:
            sample_keys(np.uint64(key), indices, tape.keys)
        dtype = self._recordable.dtype
        if isinstance(images, ChosenRows):
            images, indices = images.array, images.places(indices)
        if in_file or images.dtype not in (np.uint8, dtype) or not images.flags.c_contiguous:
            images = np.ascontiguousarray(images[indices], np.uint8 if images.dtype == np.uint8 else dtype)
            indices = np.arange(len(images))
        features = math.prod(self.input_shape)
        scale = dtype.type(1 / 255 if images.dtype == np.uint8 else 1)
        rows = images.reshape(len(images), features)
        if loading is not None:
            loading.load(rows, indices, scale)
            return loading.y
        load_kernel(rows, indices, scale, tape.x.reshape(features, len(indices)))
        return tape.x

    def load_labels(self, labels: Array, indices: Array) -> Array:
        """Gather the labels of the samples that `load` has loaded. The memory is allocated once and reused.

        Args:
            labels: (N,) or (N, outputs).
            indices: (n,); `load` has checked their range.

        Returns:
            (n,) or (n, outputs), valid until the next call.
        """
        n, kept = len(indices), self._labels
        if len(kept) < n or kept.dtype != labels.dtype or kept.shape[1:] != labels.shape[1:]:
            self._labels = np.empty((n, *labels.shape[1:]), labels.dtype)
        return _taken(labels, indices, self._labels)

    def load_sample_weight(self, sample_weight: Array | None, indices: Array) -> tuple[()] | tuple[Array]:
        """As `load_labels` for the weights of the samples, as further arguments of a loss; none for None."""
        if sample_weight is None:
            return ()
        if len(self._sample_weight) < len(indices):
            self._sample_weight = np.empty(len(indices))
        return (_taken(sample_weight, indices, self._sample_weight),)

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Run the layers.

        Args:
            x: (*input_shape, n), as `load` returns it.
            training: whether `backward` follows. Some layers behave differently in training.

        Returns:
            (*output_shape, n), valid until the next call.
        """
        tape = self.tape(x.shape[-1], training=training)
        if not training:
            tape.count_prediction()
        if tape.loading is not None and x is tape.loading.y:
            self._run(([], *tape.forward_parts[1:]) if self._by_layer else (tape.forward_loaded,))
            return tape.y
        if x is not tape.x:
            tape.x[...] = x
        self._run(tape.forward_parts if self._by_layer else (tape.forward,))
        return tape.y

    def backward(self, dy: Array) -> None:
        """Run the layers in reverse and overwrite `gradients`. Call it after `forward` of the same samples in training.

        Args:
            dy: the gradient of the loss with respect to the output. It is copied unless it is `output_gradient`, which
                is overwritten.
        """
        tape = self.tape(dy.shape[-1], training=True)
        if dy is not tape.dy:
            tape.dy[...] = dy
        self._run(tape.backward_parts if self._by_layer else (tape.backward,))

    def output_gradient(self, n: int, *, training: bool = True) -> Array:
        """The array, (*output_shape, n), to which a loss writes the gradient of the output."""
        return self.tape(n, training=training).dy

    def loss(self, loss: Loss, output: Array, labels: Array, batch_size: int, doutput: Array, *weight: Array) -> float:
        """The loss's `forward_backward` for the output of `forward` in training, also if the layers mix labels."""
        shares = self.tape(len(labels), training=True).label_shares
        if shares is None:
            return loss.forward_backward(output, labels, batch_size, doutput, *weight)
        return self._mixer.forward_backward(loss, output, labels, shares, batch_size, doutput, *weight)

    def outputs(self, x: Array) -> list[Array]:
        """As `forward`, in prediction, for the outputs of all layers. Needs a replica that does not share memory."""
        self.forward(x)
        return self.tape(x.shape[-1], training=False).outputs

    def _run(self, parts: Sequence[list[Call]]) -> None:
        for part in parts:
            for call in part:
                call()

    def check_memory(self) -> None:
        """Raise ShapeError if the arrays for a block of samples do not fit into this machine's memory."""
        check_memory(f"the network's activations for {self.block_size} samples", self.plan_size())

    @property
    def nbytes(self) -> int:
        """Memory that the replica uses for a block of samples [bytes]."""
        return self.reduction_buffer.nbytes + self.plan_size()

    def plan_size(self) -> int:
        """Memory of the arrays to train on a block of samples, without the reduction buffer [bytes]."""
        return plan_tape(self._recordable, self.block_size, training=True).size


def _taken(values: Array, indices: Array, memory: Array) -> Array:
    """The values at these indices, in the beginning of `memory`."""
    # "clip" changes no index, but in other modes numpy gathers into a temporary array first.
    return values.take(indices, 0, memory[: len(indices)], "clip")


def _recordable(
    layers: dict[int, Layer],
    input_shape: Shape,
    kept: Sequence[LayerArrays],
    dtype: np.dtype,
    *,
    bfloat16: bool = False,
) -> Recordable:
    """The layers that run, with their shapes and the arrays of all layers that each stands for."""
    shapes = [input_shape]
    for layer in layers.values():
        shapes.append(layer.output_shape(shapes[-1]))
    neighbours = [kept[start:stop] for start, stop in pairwise([*layers, len(kept)])]
    arrays = [LayerArrays(*map(merged, zip(*some, strict=True))) for some in neighbours]
    last_backward = next((i for i, one in enumerate(arrays) if one.grads), len(layers))
    return Recordable(tuple(layers.values()), tuple(layers), shapes, arrays, last_backward, dtype, bfloat16)


def _block_size(shapes: Sequence[Shape], dtype: np.dtype, *, bfloat16: bool) -> int:
    """Number of samples to run through the layers at once: few enough that a layer's output is still in the cache when
    the next layer reads it, and enough to fill vectors and to outweigh the cost of the calls.

    1024 samples through the paper's network take 9.8 us a sample in blocks of 128 and 11.7 us in blocks of 32. Networks
    for images of 32 x 32 do not fit into the cache. In blocks of 48 instead of 32 they take 0.90 to 0.95 of the time
    (0.91 to 0.97 with 16-byte vectors), and 1.02 where 1 x 1 filters dominate: rows and images of a power of two share
    a few places of the cache. In bfloat16, whose tiles hold 32 samples, they take 1.15 of the time.

    The size depends on shapes alone, so that the same seed gives the same bits.
    """
    largest = max(math.prod(x) + math.prod(y) for x, y in pairwise(shapes)) * dtype.itemsize
    fewest = (2 if bfloat16 else 3) * _LANES
    return min(max(_CACHE_BYTES // largest // _LANES * _LANES, fewest), 8 * _LANES)
