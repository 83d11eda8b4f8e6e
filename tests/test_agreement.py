"""Ranks that were called with different arguments or data are told so, before the first step."""

import copy
import mmap
import re

import numpy as np
import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.errors import ReplicaMismatchError
from parallelcnn.training import agreement
from parallelcnn.training.agreement import check_replicas, describe_data

TRAIN, TEST = small.dataset(50), small.dataset(20)


class Scale(pc.Layer):
    """Its factor is not in its `repr`."""

    def __init__(self, factor):
        object.__setattr__(self, "factor", factor)

    def __repr__(self):
        return "Scale()"

    def output_shape(self, shape):
        return shape

    def forward(self, params, x, y, cache, *, training):
        y[...] = x

    def backward(self, params, grads, x, y, cache, dy, dx):
        dx[...] = dy


def other_class(factor):
    """A class of the same name whose forward pass is another."""

    class Scale(pc.Layer):
        def __init__(self):
            pass

        __repr__ = globals()["Scale"].__repr__
        output_shape = globals()["Scale"].output_shape
        backward = globals()["Scale"].backward

        def forward(self, params, x, y, cache, *, training):
            y[...] = factor * x

    return Scale


def network(first, dtype=np.float32):
    return pc.NetworkHandler((first, pc.Flatten(), pc.Dense(5)), (1, 11, 9), dtype=dtype)


def activated(function):
    return pc.Activation(pc.ActivationFunction("mine", function))


def with_pixel(dataset, value):
    images = dataset.images.copy()
    images[7, 3, 3] = value
    return pc.Dataset(images, dataset.labels, dataset.classes, dataset.name)


def with_label(dataset, value):
    labels = dataset.labels.copy()
    labels[7] = value
    return pc.Dataset(dataset.images, labels, dataset.classes, dataset.name)


TABLE = np.zeros(5000)
OTHER_TABLE = np.arange(5000) == 2500
SUM = "uint8 of shape .50, 11, 9., CRC-32 [0-9a-f]{8}, labels [0-9a-f]{8}"


@pytest.mark.parametrize(
    ("name", "first", "other", "message"),
    [
        ("train_set", with_pixel(TRAIN, 0), with_pixel(TRAIN, 1), f"rank 0 has train_set {SUM}, but rank 2 has {SUM}"),
        ("train_set", with_label(TRAIN, 0), with_label(TRAIN, 1), f"rank 0 has train_set {SUM}, but rank 2 has {SUM}"),
        ("test_set", with_pixel(TEST, 0), with_pixel(TEST, 1), "rank 0 has test_set uint8 of shape .20, 11, 9., CRC"),
        ("network", network(Scale(1)), network(Scale(5)), r"rank 2 has layer 1, Scale\(\), with another factor than"),
        ("network", network(Scale(TABLE)), network(Scale(OTHER_TABLE)), "with another factor than rank 0"),
        ("network", network(activated(lambda x: x)), network(activated(lambda x: 2 * x)), "with another activation"),
        ("network", network(pc.Activation(lambda x: x)), network(pc.Activation(lambda x: 2 * x)), "another activation"),
        ("network", network(other_class(1)()), network(other_class(2)()), "with other code or contents than rank 0"),
        ("network", network(Scale(1)), network(pc.MaxPool2D()), r"has layer 1 Scale\(\), but rank 2 has MaxPool2D\(\)"),
        (
            "network",
            network(Scale(1)),
            small.network(),
            r"rank 0 has layers \(Scale\(\), .*, but rank 2 has \(Conv2D\(",
        ),
        ("network", network(Scale(1)), network(Scale(1), np.float64), "rank 0 has dtype dtype.'float32'., but"),
        ("optimizer", pc.SGD(0.1), pc.SGD(0.2), r"has optimizer SGD\(learning_rate=0.1.* but rank 2 has SGD\(.*=0.2"),
        ("loss", pc.SoftmaxCrossEntropy(), pc.MeanSquaredError(), "rank 0 has loss SoftmaxCrossEntropy.., but"),
        (
            "loss",
            pc.PointwiseLoss(lambda y, t: (y - t) ** 2),
            pc.PointwiseLoss(lambda y, t: abs(y - t)),
            r"rank 2 has loss, PointwiseLoss\(<lambda>\), with another function than rank 0",
        ),
        ("test_set", TEST, pc.Dataset(TEST.images, TEST.labels % 4, 4), "classes .5, 5., but rank 2 has .5, 4."),
        ("epochs", 1, 2, "rank 0 has epochs 1, but rank 2 has 2"),
        ("reproducible", None, 4, "rank 0 has reproducible None, but rank 2 has 4"),
        ("profiler", None, pc.Profiler(), "rank 0 has profiler None, but rank 2 has Profiler"),
    ],
)
def test_what_differs_is_named_with_the_rank(name, first, other, message):
    arguments = {
        "network": network(Scale(1)),
        "train_set": TRAIN,
        "test_set": TEST,
        "optimizer": pc.SGD(0.1),
        "epochs": 1,
        "batch_size": 10,
    }

    def work(comm):
        arguments_here = {**arguments, name: other if comm.rank == 2 else first}
        arguments_here["network"] = copy.copy(arguments_here["network"])  # each rank has its own
        with pytest.raises(ReplicaMismatchError) as caught:
            pc.train(**arguments_here, comm=comm, timeout=0)
        return str(caught.value)

    said = on_ranks(4, work)
    assert len(set(said)) == 1
    assert said[0].startswith("all ranks must train the same: ")
    assert re.search(message, said[0]), said[0]


@pytest.mark.parametrize("name", ["dataset", "network", "parameters"])
def test_ranks_that_would_evaluate_different_things_are_told_so(name):
    def work(comm):
        changed = comm.rank == 1
        evaluated = network(Scale(1 + (changed and name == "network")))
        evaluated.params[3] += changed and name == "parameters"
        with pytest.raises(ReplicaMismatchError, match=f"rank 1 has .*|{name}"):
            pc.evaluate(evaluated, with_pixel(TEST, int(changed and name == "dataset")), comm)

    on_ranks(2, work)


def test_another_version_of_the_program_is_named():
    class WithAnOlderRank(pc.Serial):
        size = 2

        def allgather(self, value):
            if not isinstance(value, dict):
                return [value, value]
            (name,) = (name for name in value if name.startswith("version"))
            return [value, {**value, name: agreement._described("0.0.1")}]

    with pytest.raises(ReplicaMismatchError, match=f"parallelcnn {pc.__version__}, but rank 1 has 0.0.1"):
        check_replicas(WithAnOlderRank(), {"loss": None})


def test_an_argument_that_cannot_be_described_on_one_rank_is_an_error_on_all():
    class Broken:
        def __repr__(self):
            raise ZeroDivisionError("on purpose")

    def work(comm):
        with pytest.raises(pc.ParallelCNNError, match="rank 1 of 2 failed"):
            check_replicas(comm, {"loss": Broken() if comm.rank == 1 else None})

    on_ranks(2, work)


def mapped(array, path):
    """The array in a file, mapped read-only, as ranks of a node share it."""
    path.write_bytes(bytes(64) + array.tobytes())
    with path.open("rb") as file:
        return [np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), array.dtype, offset=64)] * 2


def test_a_file_that_ranks_of_a_node_have_mapped_is_read_by_one_of_them(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(agreement, "_crc32", lambda array: (calls.append(len(array)), 1)[1])
    images = np.arange(50 * 99, dtype=np.uint8)
    shared = mapped(images, tmp_path / "images")

    def work(comm):
        own = shared[0].reshape(50, 11, 9)
        return describe_data(comm, data=pc.Dataset(own, TRAIN.labels.copy(), 5))

    described = on_ranks(3, work)
    assert calls == [50] * 4  # the images once, the labels of each rank
    assert described == [{"data": "uint8 of shape (50, 11, 9), CRC-32 00000001, labels 00000001"}] * 3
