#!/usr/bin/env python3
"""The paper's network in Keras, on TensorFlow.

Variants: fit, `model.fit` as everybody calls it; fit_many_steps, the same with the whole epoch as one call into the
graph (`steps_per_execution`, which Keras's documentation advises for small networks); fit_xla, with `jit_compile`;
function, a training loop of one's own, a `tf.function` that runs the whole epoch; function_xla, its step compiled by
XLA. The losses of every minibatch are told by the functions alone: `fit` would have to stop after each.
"""

import argparse
import os
from typing import Any

import numpy as np
from contract import (
    WARM_UP_STEPS,
    Meter,
    load,
    parse_options,
    print_result,
    require,
    start_values,
    steps_of_epoch,
)

VARIANTS = ("fit", "fit_many_steps", "fit_xla", "function", "function_xla")


def main() -> None:
    options = parse_options("Keras", VARIANTS)
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf = require("tensorflow", options)
    keras = require("keras", options)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)

    with Meter() as loading:
        data = load(options)
        # NHWC, the only layout that TensorFlow's CPU convolutions have.
        images, test_images = data.images[..., np.newaxis], data.test_images[..., np.newaxis]
        labels, test_labels = data.labels, data.test_labels
        if options.variant.startswith("function"):
            images, labels = tf.constant(images), tf.constant(labels)

    model = build(keras)
    set_start_values(model, options.seed)
    run = _run_function if options.variant.startswith("function") else _run_fit
    training, losses = run(tf, keras, model, images, labels, options)

    def evaluate(x: Any, y: Any) -> tuple[float, float]:
        """(loss, accuracy)."""
        outputs = np.asarray(model.predict(x, batch_size=1000, verbose=0))
        loss = keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)
        return float(np.mean(loss)), float((outputs.argmax(1) == np.asarray(y)).mean())

    test_loss, test_accuracy = evaluate(test_images, test_labels)
    print_result(
        options,
        loading=loading,
        training=training,
        losses=losses,
        versions={"keras": keras.__version__, "tensorflow": tf.__version__},
        train_accuracy=evaluate(images, labels)[1],
        test_accuracy=test_accuracy,
        test_loss=test_loss,
    )


def build(keras: Any) -> Any:
    """The network, as the Keras documentation's MNIST example writes it."""
    return keras.Sequential(
        [
            keras.layers.Input((28, 28, 1)),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(84, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def set_start_values(model: Any, seed: int) -> None:
    """Keras's filters are (R, S, C, K), its dense weights (in, out), and it flattens by row, column, channel."""
    first, second, hidden, last = start_values(seed)
    by_channel = hidden["weight"].reshape(84, 16, 5, 5)
    by_row = by_channel.transpose(0, 2, 3, 1).reshape(84, 400)
    weights = [
        first["weight"].transpose(2, 3, 1, 0),
        second["weight"].transpose(2, 3, 1, 0),
        by_row.T,
        last["weight"].T,
    ]
    biases = [layer["bias"] for layer in (first, second, hidden, last)]
    model.set_weights([array for pair in zip(weights, biases, strict=True) for array in pair])


def _run_fit(
    tf: Any, keras: Any, model: Any, images: Any, labels: Any, options: argparse.Namespace
) -> tuple[Meter, list[float] | None]:
    """Training by `model.fit`, which shuffles by itself; without a metric, since the others compute none."""
    steps = -(-len(images) // options.batch_size)

    def compile_model(learning_rate: float) -> None:
        model.compile(
            optimizer=keras.optimizers.SGD(learning_rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=steps if options.variant == "fit_many_steps" else 1,
            jit_compile=options.variant == "fit_xla",
        )

    keras.utils.set_random_seed(options.seed)
    compile_model(options.learning_rate)
    before = model.get_weights()
    # One epoch, not a few steps: with many steps an execution nothing shorter traces the same function.
    model.fit(images, labels, options.batch_size, epochs=1, verbose=0)
    model.set_weights(before)
    with Meter() as training:
        model.fit(images, labels, options.batch_size, epochs=options.epochs, verbose=0)
    return training, None


def _run_function(
    tf: Any, keras: Any, model: Any, images: Any, labels: Any, options: argparse.Namespace
) -> tuple[Meter, list[float]]:
    """Training by a function of one's own, over parallelcnn's minibatches."""
    optimizer = keras.optimizers.SGD(options.learning_rate)
    optimizer.build(model.trainable_variables)
    batch_size = options.batch_size

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

    def order_of(epoch: int) -> Any:
        return tf.constant(np.concatenate(list(steps_of_epoch(options, len(images), epoch))))

    before = model.get_weights()
    epoch_of(order_of(1)[: WARM_UP_STEPS * batch_size])
    model.set_weights(before)
    losses = []
    with Meter() as training:
        for epoch in range(1, options.epochs + 1):
            losses.append(epoch_of(order_of(epoch)))
        everything = np.concatenate([part.numpy() for part in losses])
    return training, everything.tolist()


if __name__ == "__main__":
    main()
