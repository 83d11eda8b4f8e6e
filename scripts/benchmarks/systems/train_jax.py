#!/usr/bin/env python3
"""Train in JAX.

Variants:
* step: a jitted step, called for each minibatch.
* reduce_window: the same with max-pooling as in the libraries on top of JAX. The other variants use a maximum over a
  reshaped image, which XLA differentiates better.
* scan: the whole epoch as one jitted `lax.scan`.
"""

import os
from collections.abc import Sequence
from typing import Any

import contract
import numpy as np
from networks import pair

import parallelcnn as pc

VARIANTS = ("step", "reduce_window", "scan")


class Jax(contract.Framework):
    """A network in JAX."""

    def __init__(self, task: contract.Task) -> None:
        os.environ["JAX_PLATFORMS"] = "cpu"
        # XLA uses as many threads as the process may use cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.options.threads])
        try:
            import jax
        except ImportError as error:
            raise contract.NotInstalled(f"JAX is not installed ({error})") from None
        self._jax, self.task, self._options = jax, task, task.options
        self.versions = {"jax": jax.__version__}
        # (n, H, W, C), the layout that XLA's convolutions on CPUs take without transposing
        images, labels = task.float_sets[0]
        self._set = jax.numpy.asarray(np.moveaxis(images, 1, 3)), jax.numpy.asarray(labels)
        self._outputs = jax.jit(self._outputs_of)
        self._step = jax.jit(self._update, donate_argnums=0)
        self._scan = jax.jit(self._run_scan, donate_argnums=0)
        self.reset()

    def reset(self) -> None:
        values = self.task.start_values(channels_last=True)
        self._params = [{name: self._jax.numpy.array(value) for name, value in layer.items()} for layer in values]

    def _outputs_of(self, params: Any, x: Any) -> Any:
        jax, values = self._jax, iter(params)
        for layer in self.task.layers:
            if isinstance(layer, pc.Conv2D):
                padding = (
                    layer.padding.upper() if isinstance(layer.padding, str) else [(p, p) for p in pair(layer.padding)]
                )
                layout = ("NHWC", "HWIO", "NHWC")
                own, stride = next(values), pair(layer.stride)
                x = jax.lax.conv_general_dilated(x, own["weight"], stride, padding, dimension_numbers=layout)
                x = x + own["bias"] if layer.bias else x
            elif isinstance(layer, pc.Dense):
                own = next(values)
                x = x @ own["weight"]
                x = x + own["bias"] if layer.bias else x
            elif isinstance(layer, pc.MaxPool2D):
                x = self._pool(x, pair(layer.pool_size), pair(layer.stride or layer.pool_size))
            elif isinstance(layer, pc.Flatten):
                x = x.reshape(len(x), -1)
            else:
                raise contract.NotInstalled(f"no function of JAX is known here for {layer}")
            if getattr(layer, "activation", "identity") != "identity":
                x = getattr(jax.nn, layer.activation)(x)
        return x

    def _pool(self, x: Any, window: tuple[int, int], stride: tuple[int, int]) -> Any:
        if self._options.variant == "reduce_window" or window != stride:
            sizes = ((1, *window, 1), (1, *stride, 1))
            return self._jax.lax.reduce_window(x, -np.inf, self._jax.lax.max, *sizes, "VALID")
        n, height, width, channels = x.shape
        (rows, columns) = window
        x = x[:, : height // rows * rows, : width // columns * columns]
        return x.reshape(n, height // rows, rows, width // columns, columns, channels).max((2, 4))

    def _update(self, params: Any, images: Any, labels: Any, chosen: Any) -> tuple[Any, Any]:
        jax = self._jax

        def loss_of(params: Any) -> Any:
            log_probabilities = jax.nn.log_softmax(self._outputs_of(params, images[chosen]))
            return -jax.numpy.take_along_axis(log_probabilities, labels[chosen][:, None], 1).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        return jax.tree.map(lambda p, g: p - self._options.learning_rate * g, params, gradients), loss

    def _run_scan(self, params: Any, images: Any, labels: Any, minibatches: Any) -> tuple[Any, Any]:
        return self._jax.lax.scan(lambda now, chosen: self._update(now, images, labels, chosen), params, minibatches)

    def train(self, samples: int, epochs: int) -> tuple[float, Sequence[float]]:
        losses: list[Any] = []
        with contract.Meter() as meter:
            for epoch in range(1, epochs + 1):
                minibatches = list(self.task.minibatches(samples, epoch))
                if self._options.variant == "scan":
                    whole = [chosen for chosen in minibatches if len(chosen) == self._options.batch_size]
                    if whole:
                        self._params, some = self._scan(self._params, *self._set, np.stack(whole))
                        losses.append(some)
                    minibatches = minibatches[len(whole) :]
                for chosen in minibatches:
                    self._params, loss = self._step(self._params, *self._set, chosen)
                    losses.append(loss)
            self._jax.block_until_ready((self._params, losses))
        return meter.seconds, np.concatenate([np.atleast_1d(loss) for loss in losses]).tolist()

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._outputs(self._params, np.moveaxis(images, 1, 3)))


if __name__ == "__main__":
    contract.main("JAX", VARIANTS, Jax)
