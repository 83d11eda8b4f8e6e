"""After the first epoch has met every size of minibatch, a step allocates no memory for numbers.

What is left are Python's own objects of a few hundred bytes, which a call makes and frees again: views, integers,
tuples. What stays is the result: one float a step in `History.losses`.
"""

import json
import sys
from dataclasses import replace

import everything
import launch
import numpy as np
import pytest
import small
import traced
from conftest import ROOT

import parallelcnn as pc
from parallelcnn.training import reduction

# Bytes. An array with but two bytes for each sample would be larger than all that a step may hold at once.
PEAK = 5120
SAMPLES = PEAK + 1
# Bytes a step: a float of 24 and its place in a list, which grows by more places than it needs at once.
GROWTH = 64

EVERY_LAYER = (
    pc.Conv2D(3, 3, activation="relu"),
    pc.MaxPool2D(2),
    pc.Conv2D(4, 3, stride=2, padding="same", activation="gelu"),
    pc.Conv2D(5, 1, bias=False, activation="tanh"),
    pc.GroupNorm(5, activation="sigmoid"),
    pc.Activation("sigmoid"),
    pc.Flatten(),
    pc.LayerNorm(),
    pc.Dense(7, activation="swish"),
    pc.Residual((pc.Dense(7, activation="tanh"),)),
    pc.Residual((pc.Dense(7),), shortcut=pc.Dense(7), activation="tanh"),
    pc.Concat((pc.Sequential((pc.Dense(3), pc.Activation("tanh"))), pc.Recompute((pc.Frozen(pc.Dense(2)),)), ())),
    pc.Dense(5),
)


@pytest.mark.parametrize(
    ("layers", "loss", "optimizer"),
    [
        (pc.paper(5)[-3:], pc.SoftmaxCrossEntropy(), pc.SGD(0.1)),
        (small.LAYERS, pc.SoftmaxCrossEntropy(), pc.SGD(0.1)),
        (pc.paper(5)[-3:], pc.SoftmaxCrossEntropy(0.1, (1, 2, 3, 4, 5)), pc.SGD(0.1)),
        (EVERY_LAYER, pc.MeanSquaredError(), pc.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)),
    ],
    ids=["dense", "small", "smoothed and weighted", "every layer"],
)
def test_a_step_allocates_no_memory_for_numbers(layers, loss, optimizer):
    # The second minibatch of each epoch is larger than the third and last one.
    train_set = small.dataset(2 * (SAMPLES + 100) + SAMPLES)
    if getattr(loss, "class_weight", None):
        train_set = replace(train_set, sample_weight=np.ones(len(train_set)))
    steps = traced.TracedSteps()
    network = pc.NetworkHandler(layers, (1, 11, 9))
    network.replica.block_size = SAMPLES + 100  # in one block: what has a place for each sample is large, and seen
    pc.train(network, train_set, small.dataset(9), optimizer, 4, SAMPLES + 100, loss=loss, callbacks=[steps], verbose=0)
    assert steps.steps == 6
    assert steps.peak <= PEAK


def test_a_step_of_the_papers_network_allocates_no_memory_for_numbers(rng):
    train_set = pc.Dataset(rng.integers(0, 256, (3 * SAMPLES, 28, 28), np.uint8), rng.integers(0, 10, 3 * SAMPLES), 10)
    steps = traced.TracedSteps()
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    network.replica.block_size = SAMPLES
    pc.train(network, train_set, small_test_set(train_set), pc.SGD(0.1), 3, SAMPLES, callbacks=[steps], verbose=0)
    assert steps.steps == 4
    assert steps.peak <= PEAK


def test_threads_allocate_no_memory_for_numbers_either():
    steps = traced.TracedSteps()
    sets = small.dataset(4 * SAMPLES), small.dataset(9)
    network = pc.NetworkHandler(small.LAYERS, (1, 11, 9))
    for worker in network.replicas(2):
        worker.block_size = SAMPLES
    pc.train(network, *sets, pc.SGD(0.1), 3, 2 * SAMPLES, callbacks=[steps], verbose=0, threads=2)
    assert steps.steps == 2
    assert steps.peak <= PEAK


@pytest.mark.parametrize("loss", [pc.MeanSquaredError(), pc.AbsoluteError(), pc.HuberLoss(), pc.BinaryCrossEntropy()])
def test_regression_allocates_no_memory_for_numbers_either(loss, rng):
    train_set = pc.Dataset(
        rng.random((3 * SAMPLES, 6), np.float32), rng.random((3 * SAMPLES, 2), np.float32), None, "regression"
    )
    steps = traced.TracedSteps()
    network = pc.NetworkHandler((pc.Dense(2),), (6,))
    network.replica.block_size = SAMPLES
    pc.train(
        network, train_set, small_test_set(train_set), pc.SGD(0.1), 3, SAMPLES, loss=loss, callbacks=[steps], verbose=0
    )
    assert steps.peak <= PEAK


@pytest.mark.parametrize("is_reproducible", [True, False])
@pytest.mark.parametrize(("threads", "shards"), [(1, 1), (2, 2), (2, 4)])
def test_a_network_with_everything_allocates_no_memory_for_numbers_either(
    threads, shards, is_reproducible, monkeypatch
):
    """Layers that mix or drop samples, with buffers; smoothed labels; warm-up, clipping and averaged weights.

    A shard has so many samples that an array with two bytes for each would be seen; with four shards, a thread adds up
    two. A minibatch at the end of an epoch is smaller.
    """
    monkeypatch.setattr(reduction, "default_shards", lambda batch_size: shards)
    steps, network = traced.TracedSteps(), everything.network()
    batch_size = shards * SAMPLES
    train_set = small.dataset(2 * batch_size + shards * (SAMPLES - 100))
    optimizer = pc.EMA(pc.AdamW(pc.Cosine(0.01, warmup=4), weight_decay=0.1, clip_norm=0.5), decay=0.9)
    options = {"comm": pc.Serial(), "callbacks": [steps], "verbose": 0, "threads": threads}
    options |= {"loss": pc.SoftmaxCrossEntropy(0.1), "reproducible": shards if is_reproducible else None}
    pc.train(network, train_set, small.dataset(9), optimizer, 3, batch_size, **options)
    assert steps.steps == 4
    assert steps.peak <= PEAK + 2048 * (threads - 1)  # each thread has Python objects of its own


def test_a_step_of_several_blocks_allocates_no_memory_for_numbers_either(rng):
    train_set = pc.Dataset(rng.integers(0, 256, (2000, 28, 28), np.uint8), rng.integers(0, 10, 2000), 10)
    steps = traced.TracedSteps()
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    pc.train(network, train_set, small_test_set(train_set), pc.SGD(0.1), 3, 500, callbacks=[steps], verbose=0)
    assert network.replica.block_size < 500
    assert steps.peak <= PEAK


def test_steps_leave_nothing_behind_but_their_losses():
    steps = traced.TracedSteps()
    train_set = small.dataset(2000)
    network = pc.NetworkHandler(EVERY_LAYER, (1, 11, 9))
    pc.train(network, train_set, small.dataset(9), pc.SGD(0.01), 2, 10, callbacks=[steps], verbose=0)
    assert steps.steps == 199
    assert steps.growth <= GROWTH * steps.steps


def test_the_tracer_sees_an_array_of_two_bytes_for_each_sample():
    class Layer(pc.Activation):
        def forward(self, step, x):
            step.call(lambda: np.ones(2 * step.n, np.uint8))
            return super().forward(step, x)

    steps = traced.TracedSteps()
    network = pc.NetworkHandler((Layer("relu"), pc.Flatten(), pc.Dense(5)), (1, 11, 9))
    network.replica.block_size = SAMPLES
    pc.train(
        network, small.dataset(2 * SAMPLES), small.dataset(9), pc.SGD(0.1), 2, SAMPLES, callbacks=[steps], verbose=0
    )
    assert steps.peak > PEAK


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_three_epochs_of_mnist_allocate_at_most_three_tenths_of_a_gibibyte_with_the_data_set(
    threads, mnist_dir, tmp_path, monkeypatch
):
    """All that the process asks of the C library, freed or not, every Python object included. Not with several ranks:
    MPICH allocates the size of the message anew for every sum over ranks.
    """
    monkeypatch.syspath_prepend(ROOT / "scripts" / "paper")
    from allocations import build_counter

    counter = build_counter(tmp_path)
    if counter is None:
        pytest.skip("no C compiler")
    program = [sys.executable, ROOT / "scripts" / "benchmarks" / "systems" / "train_parallelcnn.py"]
    options = ["--data", "mnist", "--data-dir", mnist_dir, "--epochs", 3, "--threads", threads]
    ran = launch.run([str(word) for word in [*program, *options]], **counter)
    assert ran.code == 0, ran.err
    figures = json.loads(ran.out)
    assert figures["loading_allocated_bytes"] > 60_000 * 28 * 28  # it counts
    assert figures["loading_allocated_bytes"] + figures["allocated_bytes"] <= 0.3 * 2**30


def small_test_set(train_set):
    return pc.Dataset(train_set.images[:9], train_set.labels[:9], train_set.classes)
