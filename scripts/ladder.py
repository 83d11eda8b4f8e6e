#!/usr/bin/env python3
"""What each optimisation brought: the paper's network trained by older and older forms of this library.

    scripts/ladder.py --variant naive --data mnist --samples 1000 --epochs 1
    mpirun -n 2 python scripts/ladder.py --variant library --threads 2 --data mnist

Each variant is a rung of RUNGS, and trains the same network from the same start over the same minibatches: the losses
are equal to rounding. Older kernels are here in the short form that serves this one network (3 x 3, stride 1, no
padding); pooling, dense layers and the loss are today's from the rung "rows" on. Prints one line of JSON, as the
programs in scripts/peers do; `reproduce_paper.py` climbs all rungs.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import naive
import numba
import numpy as np
from numba import njit

import parallelcnn as pc
from parallelcnn.training.threads import one_blas_thread

sys.path.append(str(Path(__file__).with_name("peers")))
import train_parallelcnn
from contract import Meter, load, parse_options, print_result, start_values, steps_of_epoch

# As parallelcnn/kernels/_jit.py has it: sums may be reordered, so that they can be vectorised.
_vectorised = njit(fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", nogil=True)
_unsigned = np.uint64  # an index that needs no check for "counted from the end"


# The formulas of naive.py as plain loops.


@njit
def loops_conv_forward(x, weight, bias):
    N, C, H, W = x.shape
    K = weight.shape[0]
    y = np.zeros((N, K, H - 2, W - 2), x.dtype)
    for i in range(N):
        for k in range(K):
            for p in range(H - 2):
                for q in range(W - 2):
                    total = bias[k]
                    for c in range(C):
                        for r in range(3):
                            for s in range(3):
                                total += weight[k, c, r, s] * x[i, c, p + r, q + s]
                    y[i, k, p, q] = total
    return y


@njit
def loops_conv_backward(x, weight, dy):
    dweight, dx = np.zeros_like(weight), np.zeros_like(x)
    N, K, P, Q = dy.shape
    for i in range(N):
        for k in range(K):
            for p in range(P):
                for q in range(Q):
                    for c in range(x.shape[1]):
                        for r in range(3):
                            for s in range(3):
                                dweight[k, c, r, s] += dy[i, k, p, q] * x[i, c, p + r, q + s]
                                dx[i, c, p + r, q + s] += dy[i, k, p, q] * weight[k, c, r, s]
    return dweight, dx


@njit
def loops_pool_forward(x):
    N, C, H, W = x.shape
    y = np.zeros((N, C, H // 2, W // 2), x.dtype)
    winner = np.zeros((N, C, H // 2, W // 2), np.int64)
    for i in range(N):
        for c in range(C):
            for p in range(H // 2):
                for q in range(W // 2):
                    y[i, c, p, q] = x[i, c, 2 * p, 2 * q]
                    for tap in range(1, 4):
                        value = x[i, c, 2 * p + tap // 2, 2 * q + tap % 2]
                        if value > y[i, c, p, q]:
                            y[i, c, p, q] = value
                            winner[i, c, p, q] = tap
    return y, winner


@njit
def loops_pool_backward(x, winner, dy):
    dx = np.zeros_like(x)
    N, C, P, Q = dy.shape
    for i in range(N):
        for c in range(C):
            for p in range(P):
                for q in range(Q):
                    tap = winner[i, c, p, q]
                    dx[i, c, 2 * p + tap // 2, 2 * q + tap % 2] = dy[i, c, p, q]
    return dx


LOOPS = naive.Kernels(loops_conv_forward, loops_conv_backward, loops_pool_forward, loops_pool_backward)


# Samples innermost: x is (C, H, W * n), and a tap of a filter is a row of it, shifted by s * n.


@_vectorised
def rows_forward(x, weight, bias, n, y):
    K, P, length = y.shape
    for k in range(K):
        for p in range(P):
            y[k, p] = bias[k]
            for c in range(x.shape[0]):
                for r in range(3):
                    for s in range(3):
                        row = x[c, p + r, s * n : s * n + length]
                        for j in range(length):
                            y[k, p, j] += weight[k, c, r, s] * row[j]


@_vectorised
def rows_backward_params(x, dy, n, dweight):
    K, P, length = dy.shape
    for k in range(K):
        for c in range(x.shape[0]):
            for r in range(3):
                for s in range(3):
                    total = dweight.dtype.type(0)
                    for p in range(P):
                        row = x[c, p + r, s * n : s * n + length]
                        for j in range(length):
                            total += dy[k, p, j] * row[j]
                    dweight[k, c, r, s] = total


@_vectorised
def rows_backward_input(dy, weight, n, dx):
    K, P, length = dy.shape
    dx[:] = 0
    for k in range(K):
        for p in range(P):
            for c in range(dx.shape[0]):
                for r in range(3):
                    for s in range(3):
                        row = dx[c, p + r, s * n : s * n + length]
                        for j in range(length):
                            row[j] += weight[k, c, r, s] * dy[k, p, j]


# Several channels per pass share what is loaded.


@_vectorised
def passes_forward(x, weight, bias, n, y):
    """Two channels a pass, all nine taps in one loop; K is even."""
    K, P, length = y.shape
    for k in range(0, K, 2):
        for p in range(P):
            y0, y1 = y[k, p], y[k + 1, p]
            y0[:] = bias[k]
            y1[:] = bias[k + 1]
            for c in range(x.shape[0]):
                for j in range(_unsigned(length)):
                    sum0, sum1 = y0[j], y1[j]
                    for r in range(3):
                        for s in range(3):
                            value = x[c, _unsigned(p + r), _unsigned(s * n) + j]
                            sum0 += weight[k, c, r, s] * value
                            sum1 += weight[k + 1, c, r, s] * value
                    y0[j], y1[j] = sum0, sum1


@_vectorised
def passes_backward_params(x, dy, n, dweight):
    """Two channels times the three taps of a filter's row a pass: five loaded rows serve six sums."""
    K, P, length = dy.shape
    for k in range(0, K, 2):
        for c in range(x.shape[0]):
            for r in range(3):
                a0 = a1 = a2 = b0 = b1 = b2 = dweight.dtype.type(0)
                for p in range(P):
                    row, dy0, dy1 = x[c, p + r], dy[k, p], dy[k + 1, p]
                    x0, x1, x2 = row[:length], row[n : n + length], row[2 * n : 2 * n + length]
                    for j in range(length):
                        a0 += dy0[j] * x0[j]
                        a1 += dy0[j] * x1[j]
                        a2 += dy0[j] * x2[j]
                        b0 += dy1[j] * x0[j]
                        b1 += dy1[j] * x1[j]
                        b2 += dy1[j] * x2[j]
                dweight[k, c, r, 0], dweight[k, c, r, 1], dweight[k, c, r, 2] = a0, a1, a2
                dweight[k + 1, c, r, 0], dweight[k + 1, c, r, 1], dweight[k + 1, c, r, 2] = b0, b1, b2


@_vectorised
def passes_backward_input(dy, weight, n, dx):
    """Four channels a pass; K is a multiple of four."""
    K, P, length = dy.shape
    dx[:] = 0
    for p in range(P):
        for c in range(dx.shape[0]):
            for k in range(0, K, 4):
                dy0, dy1, dy2, dy3 = dy[k, p], dy[k + 1, p], dy[k + 2, p], dy[k + 3, p]
                for r in range(3):
                    for s in range(3):
                        row = dx[c, p + r, s * n : s * n + length]
                        w0, w1 = weight[k, c, r, s], weight[k + 1, c, r, s]
                        w2, w3 = weight[k + 2, c, r, s], weight[k + 3, c, r, s]
                        for j in range(length):
                            row[j] += w0 * dy0[j] + w1 * dy1[j] + w2 * dy2[j] + w3 * dy3[j]


class RowKernels(NamedTuple):
    """The three kernels of a convolution over rows."""

    forward: Callable[..., None]
    backward_params: Callable[..., None]
    backward_input: Callable[..., None]


ROWS = RowKernels(rows_forward, rows_backward_params, rows_backward_input)
PASSES = RowKernels(passes_forward, passes_backward_params, passes_backward_input)


@_vectorised
def relu_forward(y):
    for i in range(y.size):
        y[i] = max(y[i], y.dtype.type(0))


@_vectorised
def relu_backward(y, dy):
    for i in range(y.size):
        dy[i] = dy[i] if y[i] > 0 else dy.dtype.type(0)


@dataclass(frozen=True, repr=False)
class OlderConv(pc.Layer):
    """Conv2D(filters, 3, activation="relu") with kernels of this file, and with relu or without."""

    filters: int
    kernels: RowKernels
    relu: bool = True

    def output_shape(self, input_shape):
        return self._today().output_shape(input_shape)

    def param_shapes(self, input_shape):
        return self._today().param_shapes(input_shape)

    def init_params(self, params, rng):
        self._today().init_params(params, rng)

    def _today(self):
        return pc.Conv2D(self.filters, 3, activation="relu")

    def forward(self, params, x, y, cache, *, training):
        self.kernels.forward(_rows(x), params["weight"], params["bias"], x.shape[-1], _rows(y))
        if self.relu:
            relu_forward(y.reshape(-1))

    def backward(self, params, grads, x, y, cache, dy, dx):
        if self.relu:
            relu_backward(y.reshape(-1), dy.reshape(-1))
        np.sum(_rows(dy), (1, 2), out=grads["bias"])
        self.kernels.backward_params(_rows(x), _rows(dy), x.shape[-1], grads["weight"])
        if dx is not None:
            self.kernels.backward_input(_rows(dy), params["weight"], x.shape[-1], _rows(dx))


@dataclass(frozen=True, repr=False)
class TiledConv(pc.Conv2D):
    """Today's Conv2D, kept from running in one pass with the pooling behind it, which does its relu."""

    def init_params(self, params, rng):
        pc.Conv2D(self.filters, self.kernel_size, activation="relu").init_params(params, rng)


def _rows(array):
    """(C, H, W, n) -> (C, H, W * n), the same memory."""
    return array.reshape(*array.shape[:2], array.shape[2] * array.shape[3])


_AFTER = (pc.Flatten(), pc.Dense(84, activation="relu"), pc.Dense(10))
_POOL = pc.MaxPool2D(2)
_POOL_RELU = pc.MaxPool2D(2, activation="relu")


@dataclass(frozen=True)
class Rung:
    """One form of the trainer: what is new in it, and either kernels for naive.py or layers for the library."""

    news: str
    kernels: naive.Kernels | None = None
    layers: tuple[pc.Layer, ...] = ()


RUNGS = {
    "naive": Rung("the formulas in numpy, samples first, a new array for every result", naive.NUMPY),
    "loops": Rung("the same as compiled loops", LOOPS),
    "rows": Rung(
        "samples innermost, so that every loop runs along a row; arrays made once; no gradient of the images",
        layers=(OlderConv(6, ROWS), _POOL, OlderConv(16, ROWS), _POOL, *_AFTER),
    ),
    "passes": Rung(
        "several channels per pass share what is loaded",
        layers=(OlderConv(6, PASSES), _POOL, OlderConv(16, PASSES), _POOL, *_AFTER),
    ),
    "pool first": Rung(
        "relu behind the pooling, where a quarter is left",
        layers=(OlderConv(6, PASSES, False), _POOL_RELU, OlderConv(16, PASSES, False), _POOL_RELU, *_AFTER),
    ),
    "tiles": Rung(
        "convolutions in register tiles, as vectors (parallelcnn/kernels)",
        layers=(TiledConv(6, 3), _POOL_RELU, TiledConv(16, 3), _POOL_RELU, *_AFTER),
    ),
    "library": Rung("convolution, pooling and relu in one pass: the library as it is", layers=pc.paper()),
}


def main() -> None:
    options = parse_options("parallelcnn", tuple(RUNGS))
    rung = RUNGS[options.variant]
    if rung.kernels is None:
        train_parallelcnn.run(options, rung.layers)
    else:
        train_naively(options, rung.kernels)


def train_naively(options: argparse.Namespace, kernels: naive.Kernels) -> None:
    """Train by naive.py and print the result."""
    with Meter() as loading:
        data = load(options)

    def train(epochs: int, some: slice = slice(None)) -> tuple[list[float], naive.Params]:
        params = [{name: array.copy() for name, array in layer.items()} for layer in start_values(options.seed)]
        losses = []
        for epoch in range(1, epochs + 1):
            minibatches = list(steps_of_epoch(options, len(data.images), epoch))[some]
            losses += naive.train(kernels, params, data.images, data.labels, minibatches, options.learning_rate)
        return losses, params

    with one_blas_thread():
        train(1, slice(1))  # compiles
        with Meter() as training:
            losses, params = train(options.epochs)
        _, train_accuracy = naive.evaluate(kernels, params, data.images, data.labels)
        test_loss, test_accuracy = naive.evaluate(kernels, params, data.test_images, data.test_labels)
    print_result(
        options,
        loading=loading,
        training=training,
        losses=losses,
        versions={"parallelcnn": pc.__version__, "numba": numba.__version__},
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
    )


if __name__ == "__main__":
    main()
