#!/usr/bin/env python3
"""Train in Keras on TensorFlow.

Variants:
* function: a custom training loop, a `tf.function` that runs a whole epoch.
* function_xla: the same with its step compiled by XLA.
* fit: `model.fit` with its defaults.
* fit_many_steps: `fit` with the whole epoch as one call into the graph (`steps_per_execution`, which Keras recommends
  for small networks).
* fit_xla: `fit` with `jit_compile`.

`fit` shuffles by itself and does not report the losses of single minibatches.
"""

import os
from collections.abc import Sequence
from typing import Any

import contract
import numpy as np

import parallelcnn as pc

VARIANTS = ("function", "fit_many_steps", "fit", "fit_xla", "function_xla")


class Keras(contract.Framework):
    """A network in Keras."""

    def __init__(self, task: contract.Task) -> None:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            import keras
            import tensorflow as tf
        except ImportError as error:
            raise contract.NotInstalled(f"Keras is not installed ({error})") from None
        self._tf, self._keras, self.task, self._options = tf, keras, task, task.options
        self.versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
        tf.config.threading.set_intra_op_parallelism_threads(task.options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(task.options.threads)
        # (n, H, W, C), the only layout of TensorFlow's convolutions on CPUs
        images, labels = task.float_sets[0]
        self._set: tuple[Any, Any] = np.moveaxis(images, 1, 3).copy(), labels
        self._by_function = self._options.variant.startswith("function")
        self._model = self._build()
        self._optimizer = keras.optimizers.SGD(self._options.learning_rate)
        self._compiled_for: int | None = None
        if self._by_function:
            self._set = tf.constant(self._set[0]), tf.constant(self._set[1])
            self._optimizer.build(self._model.trainable_variables)
            self._epoch = self._epoch_function()
        self.reset()

    def _build(self) -> Any:
        layers = self._keras.layers
        channels, height, width = self.task.input_shape
        built: list[Any] = [layers.Input((height, width, channels))]
        for layer in self.task.layers:
            if isinstance(layer, pc.Conv2D):
                padding = layer.padding
                if not isinstance(padding, str):
                    if padding not in (0, (0, 0)):
                        built.append(layers.ZeroPadding2D(padding))
                    padding = "valid"
                shape = layer.filters, layer.kernel_size, layer.stride
                built.append(layers.Conv2D(*shape, padding=padding, activation=layer.activation, use_bias=layer.bias))
            elif isinstance(layer, pc.Dense):
                activation = None if layer.activation == "identity" else layer.activation
                built.append(layers.Dense(layer.units, activation=activation, use_bias=layer.bias))
            elif isinstance(layer, pc.MaxPool2D):
                built.append(layers.MaxPooling2D(layer.pool_size, layer.stride))
            elif isinstance(layer, pc.Flatten):
                built.append(layers.Flatten())
            else:
                raise contract.NotInstalled(f"no layer of Keras is known here for {layer}")
        return self._keras.Sequential(built)

    def reset(self) -> None:
        values = self.task.start_values(channels_last=True)
        self._model.set_weights([value for layer in values for value in layer.values()])

    def train(self, samples: int, epochs: int) -> tuple[float, Sequence[float] | None]:
        return self._train_by_function(samples, epochs) if self._by_function else self._fit(samples, epochs)

    def _fit(self, samples: int, epochs: int) -> tuple[float, None]:
        options = self._options
        if self._compiled_for != samples:
            steps = -(-samples // options.batch_size) if options.variant == "fit_many_steps" else 1
            self._model.compile(
                optimizer=self._keras.optimizers.SGD(options.learning_rate),
                loss=self._keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                steps_per_execution=steps,
                jit_compile=options.variant == "fit_xla",
            )
            self._keras.utils.set_random_seed(options.seed)
            self._compiled_for = samples
        images, labels = (array[:samples] for array in self._set)
        with contract.Meter() as meter:
            self._model.fit(images, labels, options.batch_size, epochs=epochs, verbose=0)
        return meter.seconds, None

    def _train_by_function(self, samples: int, epochs: int) -> tuple[float, Sequence[float]]:
        orders = [np.concatenate(list(self.task.minibatches(samples, epoch))) for epoch in range(1, epochs + 1)]
        with contract.Meter() as meter:
            losses = [self._epoch(self._tf.constant(order)) for order in orders]
            numbers = np.concatenate([some.numpy() for some in losses]).tolist()
        return meter.seconds, numbers

    def _epoch_function(self) -> Any:
        tf, model, batch_size, options = self._tf, self._model, self._options.batch_size, self._options
        images, labels = self._set

        @tf.function(jit_compile=options.variant == "function_xla")
        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True)))
            gradients = tape.gradient(loss, model.trainable_variables)
            for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
                variable.value.assign_sub(options.learning_rate * gradient)
            return loss

        @tf.function
        def epoch_of(order: Any) -> Any:
            whole = tf.shape(order)[0] // batch_size
            losses = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
            for i in tf.range(whole):
                chosen = order[i * batch_size : (i + 1) * batch_size]
                losses = losses.write(i, step(tf.gather(images, chosen), tf.gather(labels, chosen)))
            if whole * batch_size < tf.shape(order)[0]:
                chosen = order[whole * batch_size :]
                losses = losses.write(whole, step(tf.gather(images, chosen), tf.gather(labels, chosen)))
            return losses.stack()

        return epoch_of

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._model(np.moveaxis(images, 1, 3), training=False))


if __name__ == "__main__":
    contract.main("Keras", VARIANTS, Keras)
