#!/usr/bin/env python3
"""The paper's network in JAX.

Variants: step, a jitted step called for each minibatch; reduce_window, the same with max-pooling as the libraries on
top of JAX write it, where the others use a maximum over a reshaped image, which XLA differentiates better; scan, the
whole epoch as one jitted `lax.scan`. Convolutions as 9 matrix products, or as one of patches, were slower than XLA's.
"""

import argparse
import os
from functools import partial
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

VARIANTS = ("step", "reduce_window", "scan")


def main() -> None:
    options = parse_options("JAX", VARIANTS)
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax = require("jax", options)
    jnp = jax.numpy
    # XLA takes as many threads as the process may use cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    with Meter() as loading:
        data = load(options)
        images, labels = jnp.asarray(data.images[..., np.newaxis]), jnp.asarray(data.labels)
    outputs_of = jax.jit(build(jax, options))

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        log_probabilities = jax.nn.log_softmax(outputs_of(params, x))
        return -jnp.take_along_axis(log_probabilities, y[:, None], 1).mean()

    def update(params: Any, images: Any, labels: Any, chosen: Any) -> tuple[Any, Any]:
        loss, gradients = jax.value_and_grad(loss_of)(params, images[chosen], labels[chosen])
        return jax.tree.map(lambda p, g: p - options.learning_rate * g, params, gradients), loss

    step = jax.jit(update, donate_argnums=0)

    @partial(jax.jit, donate_argnums=0)
    def scan(params: Any, images: Any, labels: Any, minibatches: Any) -> tuple[Any, Any]:
        return jax.lax.scan(lambda params, chosen: update(params, images, labels, chosen), params, minibatches)

    def run_epoch(params: Any, minibatches: list[np.ndarray]) -> tuple[Any, list[Any]]:
        losses = []
        if options.variant == "scan":
            whole = [minibatch for minibatch in minibatches if len(minibatch) == options.batch_size]
            params, some = scan(params, images, labels, jnp.asarray(np.stack(whole)))
            losses, minibatches = [some], minibatches[len(whole) :]
        for minibatch in minibatches:
            params, loss = step(params, images, labels, minibatch)
            losses.append(loss)
        return params, losses

    first_epoch = list(steps_of_epoch(options, len(images), 1))
    few = first_epoch if options.variant == "scan" else [*first_epoch[:WARM_UP_STEPS], first_epoch[-1]]
    jax.block_until_ready(run_epoch(start_params(jnp, options.seed), few))
    params = start_params(jnp, options.seed)
    losses: list[Any] = []
    with Meter() as training:
        for epoch in range(1, options.epochs + 1):
            params, some = run_epoch(params, list(steps_of_epoch(options, len(images), epoch)))
            losses += some
        jax.block_until_ready((params, losses))

    def evaluate(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """(loss, accuracy), a thousand samples at a time."""
        pieces = [outputs_of(params, x[i : i + 1000, ..., None]) for i in range(0, len(x), 1000)]
        logits = np.concatenate(pieces)
        log_probabilities = np.asarray(jax.nn.log_softmax(logits))
        return float(-log_probabilities[np.arange(len(y)), y].mean()), float((logits.argmax(1) == y).mean())

    test_loss, test_accuracy = evaluate(data.test_images, data.test_labels)
    print_result(
        options,
        loading=loading,
        training=training,
        losses=np.concatenate([np.atleast_1d(loss) for loss in losses]).tolist(),
        versions={"jax": jax.__version__},
        train_accuracy=evaluate(data.images, data.labels)[1],
        test_accuracy=test_accuracy,
        test_loss=test_loss,
    )


def build(jax: Any, options: argparse.Namespace) -> Any:
    """The function (params, x) -> logits; x: (n, 28, 28, 1)."""
    lax = jax.lax

    def conv(x: Any, layer: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")  # the one that XLA's CPU convolutions take without transposing
        return lax.conv_general_dilated(x, layer["weight"], (1, 1), "VALID", dimension_numbers=layout) + layer["bias"]

    def pool(x: Any) -> Any:
        if options.variant == "reduce_window":
            return lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        n, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))

    def outputs_of(params: Any, x: Any) -> Any:
        first, second, hidden, last = params
        x = pool(jax.nn.relu(conv(x, first)))
        x = pool(jax.nn.relu(conv(x, second)))
        x = jax.nn.relu(x.reshape(len(x), -1) @ hidden["weight"] + hidden["bias"])
        return x @ last["weight"] + last["bias"]

    return outputs_of


def start_params(jnp: Any, seed: int) -> list[dict[str, Any]]:
    """As parallelcnn starts, for filters (R, S, C, K), dense weights (in, out), flattened by row, column, channel."""
    first, second, hidden, last = start_values(seed)
    by_row = hidden["weight"].reshape(84, 16, 5, 5).transpose(0, 2, 3, 1).reshape(84, 400)
    weights = (
        first["weight"].transpose(2, 3, 1, 0),
        second["weight"].transpose(2, 3, 1, 0),
        by_row.T,
        last["weight"].T,
    )
    layers = (first, second, hidden, last)
    return [
        {"weight": jnp.array(weight), "bias": jnp.array(layer["bias"])}
        for weight, layer in zip(weights, layers, strict=True)
    ]


if __name__ == "__main__":
    main()
