"""A minibatch in fewer shards than there are threads: a warning, and no more threads than shards by default."""

import warnings

import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.errors import TrainingWarning
from parallelcnn.training import threads as module
from parallelcnn.training.reduction import default_shards
from parallelcnn.training.threads import choose_threads

MIXING = (pc.Flatten(), pc.BatchNorm(), pc.Dense(5))
BATCH_SIZE = 64


def train(layers=MIXING, comm=None, **options):
    sets = small.dataset(BATCH_SIZE), small.dataset(9)
    network = pc.NetworkHandler(layers, (1, 11, 9))
    options = {"comm": comm or pc.Serial(), "verbose": 0, "timeout": 0, **options}
    return pc.train(network, *sets, pc.SGD(0.1), 1, BATCH_SIZE, **options)


@pytest.mark.parametrize(
    ("ranks", "shards", "wanted"),
    [
        (1, None, [8]),
        (1, 16, [8]),
        (1, 3, [3]),
        (1, 1, [1]),
        (3, None, [2, 2, 2]),
        (3, 4, [1, 1, 2]),
        (3, 2, [1, 1, 1]),
    ],
)
def test_no_more_threads_than_shards_are_chosen(ranks, shards, wanted, monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: frozenset(range(8)))
    monkeypatch.setattr(module, "core_quota", lambda: None)
    assert on_ranks(ranks, lambda comm: choose_threads(comm, None, 10**15, shards)) == wanted
    assert on_ranks(ranks, lambda comm: choose_threads(comm, 5, 10**15, shards)) == [5] * ranks


def test_a_thread_without_a_shard_is_warned_about_at_the_callers_line():
    shards = default_shards(BATCH_SIZE)
    with pytest.warns(TrainingWarning) as warned:
        train(threads=shards + 2)
    assert [(one.filename, str(one.message)) for one in warned] == [
        (
            __file__,
            f"layers that mix samples, such as BatchNorm, cut a minibatch into {shards} shards, each for one thread, "
            f"so 2 of {shards + 2} threads (1 rank of {shards + 2} threads) have nothing to do: use a larger "
            f"batch_size, or fewer processes or threads",
        )
    ]


def test_with_reproducible_the_advice_is_another_number_of_shards():
    with pytest.warns(
        TrainingWarning,
        match=r"^reproducible=2 cuts a minibatch into 2 shards, each for one thread, so 1 of 3 threads \(1 rank of 3 "
        r"threads\) have nothing to do: use a larger number for reproducible, or fewer processes or threads$",
    ):
        train(small.LAYERS, threads=3, reproducible=2)


def test_several_ranks_are_warned_about_once():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        on_ranks(3, lambda comm: train(comm=comm, threads=comm.rank + 1, reproducible=5))
    assert [str(one.message).partition("so ")[2].partition(" have")[0] for one in warned] == [
        "1 of 6 threads (3 ranks of 1 to 3 threads)"
    ]


def test_enough_shards_or_layers_that_mix_no_samples_cause_no_warning():
    train(threads=default_shards(BATCH_SIZE))
    train(threads=3, reproducible=3)
    train(small.LAYERS, threads=3)


def test_the_command_warns_once(train, tmp_path):
    ran = train("--epochs", 1, "--threads", 2, "--reproducible", 1)
    assert ran.code == 0, ran.err
    assert ran.err.count("reproducible=1 cuts a minibatch into 1 shard, each for one thread, so 1 of 2 threads") == 1
