"""The numbers of multiply-adds that layers state are those of the calls that they record."""

from dataclasses import dataclass

import numpy as np
import pytest

import parallelcnn as pc

counted = []


@dataclass(frozen=True, repr=False)
class Counted(pc.Dense):
    """Notes the products that it records."""

    def forward(self, step, x):
        counted.append(self.multiply_adds(x.shape[:-1]))
        return super().forward(step, x)

    def backward(self, step, dy):
        (x, *_) = step.saved
        gradients = ("weight" in step.grads) + step.needs_input_gradient
        counted.append(-gradients * self.multiply_adds(x.shape[:-1]))
        return super().backward(step, dy)


def frozen(units):
    return pc.Frozen(Counted(units))


NETWORKS = {
    "plain": (Counted(3), pc.BatchNorm(), Counted(5)),
    "frozen first": (frozen(3), pc.Frozen(pc.BatchNorm()), Counted(5), Counted(2)),
    "frozen between": (Counted(3), frozen(5), Counted(2)),
    "frozen last": (Counted(3), pc.Activation("tanh"), frozen(5)),
    "all frozen": (frozen(3), pc.Recompute((frozen(4),)), pc.Frozen(pc.Residual((Counted(4),)))),
    "sequential": (
        pc.Sequential((frozen(4), pc.Sequential((frozen(3), Counted(5))), frozen(2), Counted(7))),
        frozen(3),
    ),
    "frozen block": (Counted(3), pc.Frozen(pc.Sequential((Counted(5), Counted(4)))), Counted(2)),
    "recomputed": (Counted(3), pc.Recompute((Counted(5), frozen(4), Counted(3))), pc.Recompute((Counted(2),))),
    "recomputed first": (pc.Recompute((frozen(5), Counted(4))), pc.Frozen(pc.Recompute((Counted(3), Counted(2))))),
    "recomputed twice": (
        pc.Recompute((Counted(5), pc.Recompute((Counted(4), pc.Residual((Counted(4),)))), Counted(2))),
    ),
    "residual": (pc.Residual((Counted(3), frozen(5)), shortcut=Counted(5)), pc.Residual((Counted(5),))),
    "frozen shortcut": (pc.Residual((frozen(3), Counted(5)), shortcut=frozen(5)), Counted(2)),
    "shortcut only": (pc.Residual((frozen(3), frozen(5)), shortcut=(Counted(4), frozen(5))), Counted(2)),
    "concat": (pc.Concat((Counted(3), (frozen(2), frozen(4)), (frozen(1), Counted(2)), ())), Counted(2)),
    "later concat": (
        Counted(4),
        pc.Concat((frozen(2), (Counted(3), pc.Frozen(pc.Concat((Counted(2), ())))))),
        frozen(2),
    ),
}


@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_the_numbers_are_those_of_the_recorded_products(layers):
    network = pc.NetworkHandler(layers, (6,))
    counted.clear()
    network.replica.tape(5, training=True)  # records twice
    recorded = [sum(abs(one) for one in counted), sum(one for one in counted if one > 0)]
    stated = network.multiply_adds_by_layer()
    forward, backward = (sum(some) for some in zip(*stated, strict=True))
    assert [2 * (forward + backward), recorded[0]] == [recorded[0]] * 2
    assert network.multiply_adds_by_layer(fused=False) == stated
    assert network.multiply_adds(7, training=True) == 7 * (forward + backward)
    assert network.multiply_adds(7, training=False) == 7 * forward
    assert recorded[1] // 2 >= forward  # more if layers are recomputed


def test_frozen_layers_are_frozen_in_fused_ones_and_in_profiles():
    convolution = 4 * 7 * 7 * 9 * 3
    layers = (pc.Frozen(pc.Conv2D(4, 3, activation="relu")), pc.MaxPool2D(2), pc.Flatten(), pc.Dense(2))
    network = pc.NetworkHandler(layers, (3, 9, 9))
    assert network.multiply_adds_by_layer(fused=False) == [(convolution, 0), (0, 0), (0, 0), (72, 72)]
    assert network.multiply_adds_by_layer() == [(convolution * 36 // 49, 0), (0, 0), (72, 72)]
    dataset = pc.Dataset(np.zeros((8, 3, 9, 9), np.uint8), np.arange(8) % 2, 2)
    profiler = pc.Profiler()
    options = {"comm": pc.Serial(), "profiler": profiler, "threads": 1, "verbose": 0}
    pc.train(network, dataset, dataset, pc.SGD(0.1), 1, 4, **options)
    assert profiler.profile.flops.tolist() == [2 * convolution * 36 // 49, 0, 144, 0, 0, 144]
    assert profiler.profile.flops_as_written == 2 * convolution + 288
    (row,) = (row.split() for row in profiler.table().splitlines() if row.startswith("PooledConv2D"))
    assert row[-3] == "-"


def test_a_layer_of_the_users_own_may_state_other_numbers():
    @dataclass(frozen=True, repr=False)
    class Twice(pc.Flatten):
        def multiply_adds(self, input_shape):
            return 10

        def backward_multiply_adds(self, input_shape, trained, *, needs_input_gradient):
            return 1000 * len(trained) + 100 * needs_input_gradient

    network = pc.NetworkHandler((Twice(), pc.Dense(3), Twice(), pc.Sequential((Twice(), pc.Dense(2)))), (4,))
    assert network.multiply_adds_by_layer() == [(10, 0), (12, 12), (10, 100), (16, 112)]
