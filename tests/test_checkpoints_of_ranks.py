"""Checkpoints of several ranks: whichever of them is lost, every later checkpoint can be resumed."""

import warnings

import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc

SGD = pc.SGD(0.1, momentum=0.9)


def train(comm, network=None, **options):
    network = network or small.network()
    sets = small.dataset(211), small.dataset(97, seed=1)
    history = pc.train(network, *sets, SGD, 2, 25, comm=comm, grains=4, timeout=0, threads=1, **options)
    return network, history


class After:
    """A reporter that calls something after a minibatch, once."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def minibatch(self, step, epoch, loss, samples):
        if step == self.step:
            self.step = 0
            self.call()

    def evaluation(self, *_):
        pass


@pytest.fixture(scope="module")
def undisturbed():
    return train(pc.Serial())[0].parameters_sha256()


@pytest.mark.parametrize("victims", [[0], [1], [0, 1]], ids=str)
def test_after_a_lost_rank_every_checkpoint_can_be_resumed(victims, tmp_path, undisturbed):
    def work(comm):
        reporter = After(3, comm.die) if comm.number in victims else None
        folder = pc.CheckpointFolder(tmp_path, every_steps=5)
        return train(comm, reporter=reporter, checkpoints=folder, leave=lambda: comm.size < 3 and folder_has(5))

    def folder_has(step):
        return (tmp_path / f"step-{step:09}.npz").exists()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        histories = [result[1] for result in on_ranks(3, work) if result is not None]
    assert {history.lost_ranks for history in histories} == {len(victims)}
    assert all(history.left for history in histories)
    newest = pc.CheckpointFolder(tmp_path).newest()
    assert newest.history.steps in (6, 7)
    assert newest.facts["train_set"].startswith("uint8 of shape")
    network, _ = train(pc.Serial(), resume=newest)
    assert network.parameters_sha256() == undisturbed
