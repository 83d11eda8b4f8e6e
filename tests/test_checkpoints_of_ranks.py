"""Checkpoints of several ranks: only of equal replicas, and any can be resumed, whichever ranks were lost."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.errors import ReplicaMismatchError, TrainingWarning

SGD = pc.SGD(0.1, momentum=0.9)


def train(comm, network=None, **options):
    network = network or small.network()
    sets = small.dataset(211), small.dataset(97, seed=1)
    history = pc.train(network, *sets, SGD, 2, 25, comm=comm, reproducible=4, timeout=0, threads=1, **options)
    return network, history


class After:
    """A callback that calls something after a minibatch, once."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_batch_end(self, step, logs):
        if step == self.step:
            self.step = 0
            self.call()


@pytest.fixture(scope="module")
def undisturbed():
    return train(pc.Serial())[0].parameters_sha256()


@pytest.mark.parametrize("victims", [[0], [1], [0, 1]], ids=str)
def test_after_a_lost_rank_every_checkpoint_can_be_resumed(victims, tmp_path, undisturbed):
    def work(comm):
        callbacks = [After(3, comm.die)] if comm.number in victims else []
        folder = pc.CheckpointFolder(tmp_path, every_steps=5)
        return train(comm, callbacks=callbacks, checkpoints=folder, stop=lambda: comm.size < 3 and folder_has(5))

    def folder_has(step):
        return (tmp_path / f"step-{step:09}.npz").exists()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        histories = [result[1] for result in on_ranks(3, work) if result is not None]
    assert {history.lost_ranks for history in histories} == {len(victims)}
    assert all(history.stopped for history in histories)
    newest = pc.CheckpointFolder(tmp_path).newest()
    assert newest.history.steps in (6, 7)
    assert newest.facts["train_set"].startswith("uint8 of shape")
    network, _ = train(pc.Serial(), resume=newest)
    assert network.parameters_sha256() == undisturbed


def flip_a_bit(network):
    network.params.view(np.uint32)[17] ^= 1 << 12


# Between two checkpoints, of nine minibatches an epoch; of rank 0, which saves.
@pytest.mark.parametrize("how", ["stops", "goes back", "leaves"])
def test_a_flipped_bit_is_found_before_it_is_saved(how, tmp_path, undisturbed):
    network = small.network()

    def work(comm):
        callbacks = [After(12, lambda: flip_a_bit(network))] if comm.rank == 0 else []
        folder = pc.CheckpointFolder(tmp_path, every_steps=100 if how == "leaves" else 5)
        answers = iter([False] * 12) if how == "leaves" and comm.rank == 1 else None
        return train(
            comm,
            network if comm.rank == 0 else None,
            callbacks=callbacks,
            checkpoints=folder if comm.rank == 0 or how == "goes back" else None,
            stop=lambda: answers is not None and next(answers, True),
            repair="checkpoint" if how == "goes back" else "stop",
        )

    if how == "goes back":
        with pytest.warns(TrainingWarning, match="rank 0 of 3 no longer .* from the checkpoint after minibatch 10"):
            on_ranks(3, work)
        assert network.parameters_sha256() == undisturbed
    else:
        with pytest.raises(ReplicaMismatchError, match="rank 0 of 3 no longer has"):
            on_ranks(3, work)
    newest = pc.CheckpointFolder(tmp_path).newest()
    assert newest.history.steps == {"stops": 10, "goes back": 18, "leaves": 9}[how]
    resumed, _ = train(pc.Serial(), resume=newest)
    assert resumed.parameters_sha256() == undisturbed


class StopsAfterAnEpoch(pc.Callback):
    def on_epoch_end(self, epoch, logs):
        self.training.stop()


def test_a_stop_that_was_asked_for_after_the_step_gone_back_to_is_asked_for_again(tmp_path):
    network = small.network()

    def work(comm):
        callbacks = [StopsAfterAnEpoch(), *([After(8, lambda: flip_a_bit(network))] if comm.rank == 0 else [])]
        folder = pc.CheckpointFolder(tmp_path, every_steps=5)
        mine = network if comm.rank == 0 else None
        return train(comm, mine, callbacks=callbacks, checkpoints=folder, repair="checkpoint")[1].steps

    with pytest.warns(TrainingWarning, match="from the checkpoint after minibatch 5"):
        assert on_ranks(3, work) == [9, 9, 9]
    undisturbed, _ = train(pc.Serial(), callbacks=[StopsAfterAnEpoch()])
    assert network.parameters_sha256() == undisturbed.parameters_sha256()


def test_replicas_that_always_differ_do_not_go_back_for_ever(tmp_path):
    def work(comm):
        network = small.network()

        class Flips(After):
            def on_batch_end(self, step, logs):
                if step == 4:
                    flip_a_bit(network)

        folder = pc.CheckpointFolder(tmp_path, every_steps=3)
        train(comm, network, callbacks=[Flips(0, None)] if comm.rank else [], checkpoints=folder, repair="checkpoint")

    with (
        pytest.warns(TrainingWarning, match="from the checkpoint after minibatch 3"),
        pytest.raises(ReplicaMismatchError),
    ):
        on_ranks(2, work)


def test_by_the_clock_of_rank_0_all_ranks_compare_and_elsewhere_they_exchange_nothing_but_the_sum(
    tmp_path, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr("parallelcnn.training.checkpoint.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def work(comm):
        before, exchanged = None, []

        class Counts:
            def on_batch_end(self, step, logs):
                nonlocal before
                if before is not None:
                    exchanged.append(comm.arrivals - before)
                before = comm.arrivals
                if step == 3 and comm.rank == 0:
                    clock[0] = 60.0

        folder = pc.CheckpointFolder(tmp_path, every_seconds=50) if comm.rank == 0 else None
        train(comm, callbacks=[Counts()], checkpoints=folder)
        return exchanged

    for exchanged in on_ranks(2, work):
        # Compared after 4, by the clock, and after 9, the end of an epoch, where the test set is evaluated, and
        # callbacks may stop the training.
        assert exchanged == [1, 1, 1, 2, 1, 1, 1, 1, 4, 1, 1, 1, 1, 1, 1, 1, 1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-000000009.npz", "step-000000018.npz"]
