"""The NetworkHandler: a neural network with its layers and parameters, and the operations forward, backward, update.

Users pass images with the samples first, (n, C, H, W) or (n, H, W). Internally the samples are the last axis,
(C, H, W, n); `load` converts. The passes run on a `Replica`. Each thread has its own replica.
"""

import copy
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from parallelcnn.architecture import as_layers, chain_shapes, check_activations, declare
from parallelcnn.arguments import PRECISIONS, check_integer, check_type
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.numbers import check_images
from parallelcnn.errors import InputError, ShapeError
from parallelcnn.fusions import fuse
from parallelcnn.kernels.losses import sigmoid, softmax
from parallelcnn.kernels.moving_average import moving_average
from parallelcnn.layers.base import Array, Layer, Shape
from parallelcnn.layers.normalize import adapted
from parallelcnn.layers.recompute import without_recomputing
from parallelcnn.layers.step import merged
from parallelcnn.network_summary import Row, as_html, as_text, summary_rows
from parallelcnn.optimizers import Optimizer
from parallelcnn.optimizers.base import Share
from parallelcnn.parameters import Matching, NamedArrays, decay_parts, named_in_order, set_values, take_matching
from parallelcnn.replica import Replica
from parallelcnn.resources import check_memory

ORIGIN = ("prediction", "input_range", "class_names", "resize")  # see `NetworkHandler.origin`


class NetworkHandler:
    """A neural network: runs its layers forwards and backwards, and updates their parameters.

    A copy made with `copy` or pickle shares no arrays with the original. Several threads may predict at the same time.

    Args:
        layers: the layers, first to last.
        input_shape: shape of one sample: (C, H, W) or (features,).
        seed: seed of the initial weights.
        dtype: type of all numbers. Use float64 only to check gradients.
        precision: "float32", or "bfloat16": in training, convolutions and dense layers multiply numbers rounded to
            bfloat16 (8 bits of precision) and add up the products in float32. Parameters, all other numbers and
            predictions stay float32. It is faster on processors with AMX; see the guide's page `precision`.

    Raises:
        InputError: if `seed`, `dtype` or `precision` is another one, a network of float64 is to use bfloat16, or an
            activation's function and derivative do not agree.
        ShapeError: if a layer does not accept the output of the layer before it, or the network does not fit into
            memory.

    Attributes:
        layers, input_shape, dtype: as given.
        precision: as given; it can be set, for example of a loaded network, before training.
        shapes: shapes of one sample before, between and after the layers.
        prediction: what `predict` returns, "softmax", "sigmoid" or "output". Training sets it from the loss.
        input_range: the smallest and largest number of the training images, with uint8 scaled to [0, 1]; None: not
            known. Images of another scale cause a warning.
        class_names: the names of the classes, in the order of the outputs; None: not known.
        resize: how the training images were brought to one size; see `Dataset`.
        history: the history of the last training, also if it was interrupted or failed; None: there was none in this
            process.

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
        precision: str = "float32",
    ) -> None:
        self.layers = as_layers(layers)
        self.dtype = _as_dtype(dtype)
        self._precision = _checked_precision(precision, self.dtype)
        check_integer("seed", seed, 0)
        self.shapes = chain_shapes(self.layers, input_shape)
        for layer, shape in zip(self.layers, self.shapes[:-1], strict=True):
            check_activations(layer, shape)
        self.input_shape = self.shapes[0]
        declared, self.layout, self.buffer_layout = declare(self.layers, self.shapes)
        check_memory("the network's parameters and gradients", 2 * self.layout.size * self.dtype.itemsize)

        self._vector = np.zeros(self.layout.size, self.dtype)
        self._buffer_vector = np.zeros(self.buffer_layout.size, self.dtype)
        self._trained_params = self._vector[: self.layout.trained.size]
        self._params = self.layout.views(self._vector)
        self._buffers = self.buffer_layout.views(self._buffer_vector)
        self._decay_parts = decay_parts(one for some, _ in declared for one in some.values())
        rng = np.random.default_rng(seed)
        for layer, arrays, (parameters, _) in zip(self.layers, self._params, declared, strict=True):
            for name, parameter in parameters.items():
                initial = parameter.initial
                values = initial(rng, parameter.shape) if callable(initial) else np.full(parameter.shape, initial)
                set_values(f"{layer}: the initial value of {name!r}", arrays[name], values)
        self._momentum = np.zeros(self.buffer_layout.size, self.dtype)
        momenta = self.buffer_layout.views(self._momentum)
        for arrays, weights, (_, buffers) in zip(self._buffers, momenta, declared, strict=True):
            for name, buffer in buffers.items():
                arrays[name][...], weights[name][...] = buffer.initial, buffer.momentum

        self.prediction = "softmax"
        self.input_range: tuple[float, float] | None = None
        self.class_names: tuple[str, ...] | None = None
        self.resize: str | None = None
        self.history: Any = None  # `training` is on a higher level
        self._optimizer_state: dict[str, Array] = {}
        self._training_thread: int | None = None
        self._predicting_threads: list[int] = []
        self._create_replicas()

    def _create_replicas(self) -> None:
        """Fuse the layers, and create the first replica that runs them."""
        self._running = fuse(self.layers, training=True)
        self._predicting = fuse(self.layers, training=False)
        self._idle: list[Replica] = []  # for predictions; append and pop of a list are thread-safe
        self._replicas = [self.new_replica()]

    @property
    def precision(self) -> str:
        return self._precision

    @precision.setter
    def precision(self, precision: str) -> None:
        self._check_not_in_training()
        self._precision = _checked_precision(precision, self.dtype)
        self._create_replicas()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.layers, self.input_shape, self.dtype, self.state, self.origin, self.precision)

    def __str__(self) -> str:
        return self.summary()

    def __copy__(self) -> "NetworkHandler":
        return copy.deepcopy(self)  # a copy that shared arrays would be changed by training the original

    @property
    def origin(self) -> dict[str, Any]:
        """What the network knows of its training, by attribute: prediction, input_range, class_names, resize."""
        return {name: getattr(self, name) for name in ORIGIN}

    @origin.setter
    def origin(self, values: Mapping[str, Any]) -> None:
        for name in ORIGIN:
            setattr(self, name, values[name])

    @property
    def params(self) -> Array:
        """All parameters in one flat vector, frozen ones last. Assignment copies the numbers into it."""
        return self._vector

    @params.setter
    def params(self, values: Any) -> None:
        self._vector[...] = _checked(values, self._vector, "params")

    @property
    def trained_params(self) -> Array:
        """The parameters that training changes: the beginning of `params`; see `Frozen`."""
        return self._trained_params

    @property
    def buffers(self) -> Array:
        """All buffers in one flat vector; see `Buffer`. Assignment copies the numbers into it."""
        return self._buffer_vector

    @buffers.setter
    def buffers(self, values: Any) -> None:
        self._buffer_vector[...] = _checked(values, self._buffer_vector, "buffers")

    @property
    def replica(self) -> Replica:
        """The replica that `load`, `forward` and `backward` use."""
        return self._replicas[0]

    @property
    def gradients(self) -> Array:
        """Gradients of `trained_params` in one flat vector. `backward` overwrites it."""
        return self.replica.gradients

    @property
    def reduction_buffer(self) -> Array:
        """The reduction buffer, which is summed over threads and ranks; see `Replica`."""
        return self.replica.reduction_buffer

    @property
    def output_shape(self) -> Shape:
        """Shape of one output sample."""
        return self.shapes[-1]

    @property
    def classes(self) -> int | None:
        """Number of classes that `predict_classes` tells apart; None: the network was not trained on classes."""
        if self.prediction == "sigmoid" and self.output_shape == (1,):
            return 2
        return self.output_shape[0] if self.prediction == "softmax" and len(self.output_shape) == 1 else None

    @property
    def parameters(self) -> NamedArrays:
        """All parameters by name, frozen ones last: `network.parameters["0.weight"]`. They can be assigned to."""
        return NamedArrays(self.layout.named(self._params))

    @property
    def named_arrays(self) -> NamedArrays:
        """All parameters and buffers by name, such as "1.running_mean". They can be assigned to."""
        return NamedArrays({**self.layout.named(self._params), **self.buffer_layout.named(self._buffers)})

    def load_parameters(self, arrays: Mapping[str, Any], *, strict: bool = True, by_order: bool = False) -> Matching:
        """Copy parameters and buffers from elsewhere into those of the same name; see `read_parameters` for files.

        A name is the position of a layer and the name of the array, such as "0.weight". `Frozen` does not change it. So
        a network can take the arrays of an earlier one of which some layers are now frozen, or the last one is another.

        Args:
            arrays: values by name, in the network's shapes.
            strict: whether to raise an error unless names and shapes are the network's. Otherwise only what fits is
                taken, and all other arrays keep their values. If more arrays fit that way, layers are counted from the
                first one that has parameters, so that layers before it, such as augmentation, make no difference.
            by_order: whether to take the arrays in their order instead of by name. The order is that of a `state_dict`
                of PyTorch: layer by layer, of each weight, bias, running_mean and running_var. Other programs sort the
                arrays of a safetensors file by name, which is another order.

        Returns:
            what was taken and what was not.

        Raises:
            ShapeError: if `strict` and a name or shape differs.
            InputError: if values are not finite numbers. Nothing is changed in both cases.

        Example:
            >>> old = NetworkHandler((Conv2D(6, 3), Flatten(), Dense(10)), (1, 8, 8))
            >>> new = NetworkHandler((Frozen(Conv2D(6, 3)), Flatten(), Dense(3)), (1, 8, 8))
            >>> print(new.load_parameters(old.named_arrays, strict=False))
            2 of 4 arrays fit; 2.weight (3, 216) has shape (10, 216) there, 2.bias (3,) has shape (10,) there
        """
        check_type("arrays", arrays, Mapping, "read_parameters(path)")
        if by_order:
            arrays = named_in_order(arrays, self.layout, self.buffer_layout)
        return take_matching(self.named_arrays, arrays, strict=strict)

    @property
    def fused_layers(self) -> list[tuple[Layer, Shape]]:
        """The layers that run in training, each with its input shape. A fused layer replaces two of `layers`."""
        return [(layer, self.shapes[place]) for place, layer in self._running.items()]

    @property
    def mixes_samples(self) -> bool:
        """Whether an output depends on other samples of its shard; see `Layer`."""
        return any(layer.mixes_samples for layer in self.layers)

    def multiply_adds(self, samples: int, *, training: bool) -> int:
        """Multiply-adds of the forward pass, and in training the backward pass, for `samples` samples; see `Layer`."""
        return samples * sum(forward + backward * training for forward, backward in self.multiply_adds_by_layer())

    def multiply_adds_by_layer(self, *, fused: bool = True) -> list[tuple[int, int]]:
        """Multiply-adds for one sample, forwards and backwards, of each of `fused_layers`, or of `layers`."""
        running = self._running if fused else dict(enumerate(self.layers))
        counts, needed = [], False
        for start, stop in pairwise([*running, len(self.layers)]):
            layer, shape, trained = running[start], self.shapes[start], merged(self.layout.trained.shapes[start:stop])
            backward = 0
            if trained or needed:
                backward = layer.backward_multiply_adds(shape, trained, needs_input_gradient=needed)
            counts.append((layer.multiply_adds(shape), backward))
            needed = needed or bool(trained)
        return counts

    def load(self, images: Array, indices: Array | None = None, *, training: bool = False, key: int = 0) -> Array:
        """Gather samples, scale uint8 to [0, 1], and convert them to the internal layout.

        Args:
            images: (N, *input_shape), uint8 or floats.
            indices: (n,), the images to load; None: all.
            training: whether a forward pass in training follows.
            key: with dropout or augmentation, another number for every step of a training loop of your own.

        Returns:
            (*input_shape, n), valid until the next call.

        Raises:
            ShapeError: if the images do not have the network's input shape.
            InputError: if the images have another type, or an index is out of range.
        """
        return self.replica.load(images, indices, training=training, key=key)

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Run the layers. x: (*input_shape, n), as `load` returns it; training: whether `backward` follows.

        Returns:
            (*output_shape, n), valid until the next call.
        """
        return self.replica.forward(x, training=training)

    def backward(self, dy: Array) -> None:
        """Run the layers in reverse and overwrite `gradients`, after `forward` of the same samples in training.

        Args:
            dy: (*output_shape, n), the gradient of the loss with respect to the output.
        """
        self.replica.backward(dy)

    def output_gradient(self, n: int) -> Array:
        """The array, (*output_shape, n), to which a loss writes the gradient of the output."""
        return self.replica.output_gradient(n)

    def replicas(self, count: int) -> list[Replica]:
        """`count` replicas, one for each thread. The first is `replica`."""
        while len(self._replicas) < count:
            self._replicas.append(self.new_replica())
        return self._replicas[:count]

    def new_replica(self, running: dict[int, Layer] | None = None, *, shares_memory: bool = True) -> Replica:
        """Create another replica, which runs the fused layers, or `running`. shares_memory: as in `Replica`."""
        layouts = self.layout, self.buffer_layout
        arrays = self._params, self._buffers
        return Replica(
            running or self._running,
            self.input_shape,
            layouts,
            *arrays,
            self.dtype,
            self._predicting,
            bfloat16=self._precision == "bfloat16",
            shares_memory=shares_memory,
        )

    @contextmanager
    def idle_replicas(self, count: int) -> Iterator[list[Replica]]:
        """Replicas for predictions in any thread. No other thread uses them inside the `with` statement.

        Raises:
            InputError: if another thread is training the network.
        """
        taken: list[Replica] = []
        self._predicting_threads.append(threading.get_ident())  # before the check, see `being_trained`
        try:
            self._check_not_in_training()
            while len(taken) < count:
                try:
                    taken.append(self._idle.pop())
                except IndexError:
                    taken.append(self.new_replica())
            yield taken
        finally:
            self._predicting_threads.remove(threading.get_ident())
            self._idle += taken

    def _check_not_in_training(self) -> None:
        if self._training_thread not in (None, threading.get_ident()):
            raise InputError(
                "the network is being trained in another thread: wait for it, or use a copy, copy.deepcopy(network)"
            )

    @contextmanager
    def being_trained(self) -> Iterator[None]:
        """Context in which other threads can neither train the network nor predict with it.

        Raises:
            InputError: if they do already.
        """
        self._check_not_in_training()
        before, own = self._training_thread, threading.get_ident()
        # Both sides say what they do before they look at the other one, so at least one of them notices.
        self._training_thread = own
        try:
            if any(thread != own for thread in self._predicting_threads):
                raise InputError(
                    "another thread predicts with the network: wait for it, or train a copy, copy.deepcopy(network)"
                )
            yield
        finally:
            self._training_thread = before

    def update(
        self,
        optimizer: Optimizer,
        samples: int | None = None,
        step: int = 0,
        steps: int = 1,
        share: Share | None = None,
    ) -> None:
        """Take one step of the optimiser along `gradients`, and update the buffers.

        Args:
            samples: number of samples in the minibatch over all ranks; a network with buffers needs it.
            step: number of steps done before.
            steps: number of steps of the whole training.
            share: lets several threads update large networks; see `KernelOptimizer.update`.

        Raises:
            InputError: if the network has buffers, and `samples` is not given.
        """
        if self.buffers.size and samples is None:
            raise InputError("samples must be the number of samples in the minibatch, by which moving averages divide")
        options = self.update_options(optimizer, share)
        optimizer.update(self.trained_params, self.gradients, self._optimizer_state, step, steps, **options)
        if self.buffers.size:
            moving_average(self.buffers, self.replica.statistics, self._momentum, samples or 1)

    @contextmanager
    def averaged(self, optimizer: Optimizer) -> Iterator[None]:
        """Context in which `params` are the optimiser's averaged parameters, if it keeps any; see `EMA`."""
        if optimizer.average(self._optimizer_state) is None:
            yield
            return
        params = self.trained_params.copy()
        self.take_average(optimizer)
        try:
            yield
        finally:
            self.trained_params[...] = params

    def take_average(self, optimizer: Optimizer) -> None:
        """Copy the optimiser's averaged parameters, if it keeps any, into `params`."""
        average = optimizer.average(self._optimizer_state)
        if average is not None:
            self.trained_params[...] = average

    def update_options(self, optimizer: Optimizer, share: Share | None = None) -> dict[str, Any]:
        """The optional arguments of the optimiser's `update`; see `Optimizer`."""
        options: dict[str, Any] = {"parts": self._decay_parts} if getattr(optimizer, "weight_decay", 0) else {}
        if share is not None:
            options["share"] = share
        return {name: value for name, value in options.items() if optimizer.takes(name)}

    def adapt(self, train_set: Dataset) -> None:
        """Give a `Normalize("auto")` at the front of the network the mean and standard deviation of the training set.

        The layer is replaced by one with these numbers. `train` calls this; without such a layer it does nothing.

        Raises:
            ShapeError: if the images do not have the network's input shape.

        Example:
            >>> network = NetworkHandler((Normalize("auto"), Flatten(), Dense(10)), (1, 8, 8))
            >>> network.adapt(Dataset(np.full((3, 8, 8), 51, np.uint8), np.arange(3), 10))
            >>> network.layers[0]
            Normalize(mean=(0.2,), std=(1.0,))
        """
        if train_set.input_shape != self.input_shape:
            raise ShapeError(f"the network takes images of shape {self.input_shape}, got {train_set.input_shape}")
        layers = adapted(self.layers, train_set.images)
        if layers is not self.layers:
            self.layers = layers
            self._create_replicas()

    def check_memory(self, threads: int = 1) -> None:
        """Raise ShapeError unless the arrays of `threads` threads, one block of samples each, fit into memory."""
        self.replica.check_memory()
        check_memory(f"the gradients and activations of {threads} threads", threads * self.replica.nbytes)

    def reset_optimizer(self) -> None:
        """Reset the optimiser state."""
        self._optimizer_state = {}

    @property
    def state(self) -> dict[str, Array]:
        """All vectors that an update changes, by name: parameters, buffers if there are any, and optimiser state."""
        buffers = {"buffers": self.buffers} if self.buffers.size else {}
        return {"params": self.params, **buffers, **self._optimizer_state}

    def set_state(self, state: dict[str, Array]) -> None:
        """Copy a `state`, of this network or of another process, into this network.

        Raises:
            ShapeError: see `check_state`.
        """
        self.check_state(state)
        self.params[...] = state["params"]
        if self.buffers.size:
            self.buffers[...] = state["buffers"]
        self._optimizer_state = {
            name: vector.copy() for name, vector in state.items() if name not in ("params", "buffers")
        }

    def check_state(self, state: dict[str, Array]) -> None:
        """Raise ShapeError unless each vector has the length and type that this network's `state` has."""
        needed = ("params", "buffers") if self.buffers.size else ("params",)
        for name in needed:
            if name not in state:
                raise ShapeError(f"{name} must be there, got {', '.join(state)}")
        for name, vector in state.items():
            wanted = {"params": self.params, "buffers": self.buffers}.get(name, self.trained_params)
            if vector.shape != wanted.shape or vector.dtype != self.dtype:
                raise ShapeError(
                    f"{name} must be {self.dtype} of shape {wanted.shape}, got {vector.dtype} of {vector.shape}"
                )

    def predict(self, images: Array) -> Array:
        """Predict from images. The result depends on the loss that the network was trained with.

        It is class probabilities, the softmax of the output, after softmax cross-entropy or without training; the
        sigmoid of the output after binary cross-entropy; and the plain output after other losses. Several threads may
        call it at the same time.

        Args:
            images: (N, *input_shape), uint8 or floats; grey images may omit the channel axis.

        Returns:
            (N, *output_shape).

        Raises:
            InputError: if the images have another shape or type, or hold NaN or infinity; or if another thread is
                training the network.
        """
        return self._predict(images, stacklevel=2)

    def predict_classes(self, images: Array) -> Array:
        """Predict the class of each image: the one with the largest probability.

        Args:
            images: as in `predict`.

        Returns:
            (N,): names of classes, or integers if `class_names` is None.

        Raises:
            InputError: if the network was not trained on classes; otherwise as `predict`.

        Example:
            >>> network = NetworkHandler((Flatten(), Dense(2)), (1, 8, 8))
            >>> network.class_names = ("cat", "dog")
            >>> network.predict_classes(np.zeros((3, 8, 8), np.uint8))
            array(['cat', 'cat', 'cat'], dtype='<U3')
        """
        if self.classes is None:
            raise InputError(
                f"predict_classes takes a network that was trained on classes; this one predicts its {self.prediction} "
                f"of shape {self.output_shape}: call predict"
            )
        probabilities = self._predict(images, stacklevel=2)
        two = self.prediction == "sigmoid"  # of which the output is the probability of the second
        labels: Array = (probabilities[:, 0] > 0.5).astype(np.int64) if two else probabilities.argmax(axis=1)
        return labels if self.class_names is None else np.array(self.class_names)[labels]

    def _predict(self, images: Array, *, stacklevel: int) -> Array:
        """See `predict`."""
        images = check_images(images, self.input_shape, self.input_range, stacklevel=stacklevel + 1)
        probabilities = {"softmax": softmax, "sigmoid": sigmoid}.get(self.prediction)
        if probabilities is not None and len(self.output_shape) != 1:
            raise ShapeError(f"predict takes a network that ends in (classes,), got {self.output_shape}")
        predictions = np.empty((len(images), *self.output_shape), self.dtype)
        with self.idle_replicas(1) as (replica,):
            for start in range(0, max(len(images), 1), replica.block_size):
                some = slice(start, start + replica.block_size)
                output = replica.forward(replica.load(images[some], fused=True))
                if probabilities is not None:
                    probabilities(output, predictions[some])
                else:
                    predictions[some] = np.moveaxis(output, -1, 0)
        return predictions

    def activations(self, images: Array, layer: int | None = None) -> Any:
        """Run the layers on images as in prediction, and return the output of one layer, or of each.

        Several threads may call it at the same time. Each layer runs by itself, where `predict` fuses neighbouring
        layers, so the last output may differ from that of `predict` by rounding.

        Args:
            images: as in `predict`.
            layer: index of the layer in `layers`; negative: counted from the end. None: all layers.

        Returns:
            (N, *shape), with the output shape of the layer; for None a list of them. The last layer's output is
            returned as it is, without the softmax or sigmoid of `predict`.

        Raises:
            InputError: if there is no such layer; otherwise as `predict`.

        Example:
            >>> network = NetworkHandler((Conv2D(6, 3, activation="relu"), Flatten(), Dense(10)), (1, 28, 28))
            >>> network.activations(np.zeros((5, 28, 28), np.uint8), layer=0).shape
            (5, 6, 26, 26)
        """
        count = len(self.layers)
        is_integer = isinstance(layer, int | np.integer) and not isinstance(layer, bool)
        if layer is not None and not (is_integer and -count <= layer < count):
            raise InputError(f"layer must be None or an integer from {-count} to {count - 1}, got {layer!r}")
        wanted = range(count) if layer is None else range(count)[layer:][:1]
        images = check_images(images, self.input_shape, self.input_range, stacklevel=2)
        self._check_not_in_training()
        end = wanted.stop
        alone = {i: fuse(self.layers[i : i + 1], training=False)[0] for i in range(end)}
        layouts = self.layout, self.buffer_layout
        arrays = self._params[:end], self._buffers[:end]
        replica = Replica(alone, self.input_shape, layouts, *arrays, self.dtype, shares_memory=False)
        found = [np.empty((len(images), *self.shapes[i + 1]), self.dtype) for i in wanted]
        for start in range(0, max(len(images), 1), replica.block_size):
            some = slice(start, start + replica.block_size)
            outputs = replica.outputs(replica.load(images[some]))
            for array, i in zip(found, wanted, strict=True):
                array[some] = np.moveaxis(outputs[i], -1, 0)
        return found if layer is None else found[0]

    def summary(self) -> str:
        """A table of the layers with output shapes (None: the number of samples) and numbers of parameters."""
        return as_text(self._summary_rows(), self._totals())

    def _repr_html_(self) -> str:
        """The summary as a table, for notebooks."""
        return as_html(self._summary_rows(), self._totals())

    def _summary_rows(self) -> list[Row]:
        return summary_rows(self.layers, self.shapes, [self.layout.count(i) for i in range(len(self.layers))])

    def _totals(self) -> list[str]:
        size = self.layout.size * self.dtype.itemsize / 1024
        frozen = f", {self.trained_params.size:,} of them trained" if self.layout.frozen else ""
        totals = [f"{self.layout.size:,} parameters, {size:,.1f} KiB{frozen}"]
        kept = without_recomputing(self.layers)
        if kept != self.layers:
            other, n = self.new_replica(fuse(kept, training=True)), self.replica.block_size
            other.block_size = n  # its own may differ, because the layers of a block count
            used, otherwise = (one.plan_size() / 2**20 for one in (self.replica, other))
            totals.append(f"training on {n} samples takes {used:,.1f} MiB, without Recompute {otherwise:,.1f} MiB")
        return totals

    def parameters_sha256(self) -> str:
        """SHA-256 of the parameters: equal if and only if all bits of the parameters are equal."""
        return hashlib.sha256(self.params.data).hexdigest()

    def state_sha256(self) -> str:
        """SHA-256 of `state`."""
        digest = hashlib.sha256()
        for name, vector in sorted(self.state.items()):
            digest.update(name.encode())
            digest.update(vector.data)
        return digest.hexdigest()


def _rebuild(
    layers: tuple[Layer, ...],
    input_shape: Shape,
    dtype: np.dtype,
    state: dict[str, Array],
    origin: dict[str, Any],
    precision: str = "float32",
) -> NetworkHandler:
    """Rebuild a network from the values that `NetworkHandler.__reduce__` returns."""
    network = NetworkHandler(layers, input_shape, dtype=dtype.type, precision=precision)
    network.set_state(state)
    network.origin = origin
    return network


def _checked(values: Any, like: Array, name: str) -> Array:
    values = np.asarray(values)
    if values.shape != like.shape:
        raise ShapeError(f"{name} must have shape {like.shape}, got {values.shape}")
    return values


def _checked_precision(precision: Any, dtype: np.dtype) -> str:
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bfloat16" and dtype != np.float32:
        raise InputError(f"precision 'bfloat16' takes a network of float32, got {dtype}")
    return str(precision)


def _as_dtype(dtype: Any) -> np.dtype:
    try:
        found: Any = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError:
        found = repr(dtype)
    if found not in (np.float32, np.float64):
        raise InputError(f"dtype must be float32 or float64, got {found}")
    return found
