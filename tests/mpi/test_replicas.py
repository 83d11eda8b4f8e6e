"""Run by test_mpi.py on 1, 2, 3 and 4 ranks: the same bits on all of them, and what happens where they are not."""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.cli.verification import verify
from parallelcnn.comm import run_together
from parallelcnn.errors import CheckpointError, DivergenceError, ReplicaMismatchError, TrainingWarning
from parallelcnn.losses import SoftmaxCrossEntropy
from parallelcnn.resilience.replica_check import odd_ones, rejoin
from parallelcnn.resilience.world import world

SGD = pc.SGD(0.1, momentum=0.9)


@pytest.fixture(scope="module")
def comm():
    return world()


@pytest.fixture
def shared_folder(comm):
    """One folder for all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(comm.allgather(folder)[0])
        comm.barrier()


def train(comm, epochs=2, network=None, **options):
    network = network or small.network()
    history = pc.train(network, small.dataset(211), small.dataset(97, seed=1), SGD, epochs, 25, comm=comm, **options)
    return network, history


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reproducible", [1, 6])
@pytest.mark.filterwarnings("ignore:.* have nothing to do:parallelcnn.errors.TrainingWarning")
def test_with_reproducible_sums_the_bits_are_those_of_one_process(comm, reproducible, threads):
    network, history = train(comm, reproducible=reproducible, threads=threads, evaluate_every=4)
    alone, history_alone = train(pc.Serial(), reproducible=reproducible, threads=1, evaluate_every=4)
    assert network.parameters_sha256() == alone.parameters_sha256()
    assert history.losses == history_alone.losses
    assert history.evaluations == history_alone.evaluations


@pytest.mark.parametrize(
    "optimizer",
    [pc.EMA(pc.AdamW(pc.Cosine(0.01, warmup=5), clip_norm=1.0)), pc.RMSprop(momentum=0.5), pc.Lion(0.001)],
)
def test_with_reproducible_sums_every_optimiser_ends_with_the_state_of_one_process(comm, optimizer):
    networks = [small.network(), small.network()]
    for network, ranks in zip(networks, (comm, pc.Serial()), strict=True):
        sets = small.dataset(211), small.dataset(97, seed=1)
        pc.train(network, *sets, optimizer, 2, 25, comm=ranks, threads=1, reproducible=6, verbose=0)
    assert set(comm.allgather(networks[0].state_sha256())) == {networks[1].state_sha256()}


def test_who_takes_over_what_the_furthest_rank_has_stops_with_it(comm):
    is_ahead = comm.rank == comm.size - 1  # it got the last sum, which said that someone wants to stop
    steps = 3 + is_ahead
    history = pc.History(losses=[0.5] * steps, samples_seen=25 * steps, stopped=is_ahead)
    rejoin(comm, small.network(), history)
    assert (history.steps, history.samples_seen, history.stopped) == (4, 100, True)


@pytest.mark.parametrize("steps", [4, 9])
def test_a_resume_on_another_number_of_ranks_gives_the_bits_of_an_undisturbed_run(comm, shared_folder, steps):
    """One rank begins, all continue; all begin, each of them continues alone."""
    answers = iter([False] * (steps - 1))
    whole, _ = train(pc.Serial(), reproducible=6)
    folder = pc.CheckpointFolder(shared_folder)
    asked = comm.rank == comm.size - 1  # it is enough that one rank wants to stop
    _, history = train(comm, reproducible=6, checkpoints=folder, stop=lambda: asked and next(answers, True))
    assert history.stopped
    assert history.steps == steps
    comm.barrier()
    resume = pc.CheckpointFolder(shared_folder).newest()
    alone, _ = train(pc.Serial(), reproducible=6, resume=resume)
    together, _ = train(comm, reproducible=6, resume=resume if comm.rank == 0 else None)
    assert {whole.parameters_sha256()} == {alone.parameters_sha256(), together.parameters_sha256()}


class FlipsABit:
    """A callback on one rank, in whose memory a bit flips after a minibatch."""

    def __init__(self, network, at=11):
        self.network, self.at = network, at

    def on_batch_end(self, step, logs):
        if step == self.at:
            self.network.params.view(np.uint32)[17] ^= 1 << 12
            self.at = 0


def test_a_flipped_bit_is_found_at_the_end_of_the_epoch_and_its_rank_named(comm, shared_folder):
    if comm.size == 1:
        pytest.skip("takes two ranks")
    network = small.network()
    odd = comm.size - 1
    folder = pc.CheckpointFolder(shared_folder)
    said = f"rank {odd} of {comm.size} no longer has" if comm.size > 2 else "no more than half of the 2 ranks have"
    with pytest.raises(ReplicaMismatchError, match=said):
        train(comm, 3, network, callbacks=[FlipsABit(network)] if comm.rank == odd else [], checkpoints=folder)
    comm.barrier()
    assert pc.CheckpointFolder(shared_folder).newest().history.steps == 9  # of the epoch before


@pytest.mark.parametrize("repair", ["majority", "checkpoint"])
def test_a_flipped_bit_is_repaired_where_asked(comm, shared_folder, repair):
    if comm.size < 3:
        pytest.skip("takes a majority")
    network = small.network()
    callbacks = [FlipsABit(network)] if comm.rank == 0 else []
    folder = pc.CheckpointFolder(shared_folder, every_steps=5)
    options = {"callbacks": callbacks, "checkpoints": folder, "repair": repair, "reproducible": 6}
    if comm.rank == 0:
        with pytest.warns(TrainingWarning, match="rank 0 of . no longer has the parameters of the others"):
            _, history = train(comm, 3, network, **options)
    else:
        _, history = train(comm, 3, network, **options)
    assert history.steps == 27
    assert len(set(comm.allgather(network.state_sha256()))) == 1
    whole, _ = train(pc.Serial(), 3, reproducible=6)
    if repair == "checkpoint":  # that of minibatch 10: after 15 the ranks were compared before one was saved
        assert network.parameters_sha256() == whole.parameters_sha256()
    else:
        np.testing.assert_allclose(network.params, whole.params, rtol=0.05, atol=0.05)


def test_a_majority_is_more_than_half():
    assert odd_ones(["a", "a", "b"]) == [2]
    assert odd_ones(["b", "a", "a", "a"]) == [0]
    assert odd_ones(["a", "b"]) == odd_ones(["a", "a", "b", "b"]) == odd_ones(["a", "b", "c"]) == []
    assert odd_ones(["a"]) == odd_ones(["a", "a"]) == []


def test_a_loss_that_is_no_number_on_one_rank_stops_all_at_the_same_minibatch(comm):
    network = small.network()

    class Breaks:
        def on_batch_end(self, step, logs):
            if step == 3:
                network.params[-3] = np.nan

    with pytest.raises(DivergenceError, match=r"the loss of minibatch 4 .epoch 1. is nan") as caught:
        train(comm, network=network, callbacks=[Breaks()] if comm.rank == comm.size - 1 else [])
    assert len(set(comm.allgather(str(caught.value)))) == 1


def test_a_checkpoint_of_another_training_is_refused_on_all_ranks(comm, shared_folder):
    train(comm, 1, checkpoints=pc.CheckpointFolder(shared_folder))
    comm.barrier()
    resume = pc.CheckpointFolder(shared_folder).newest() if comm.rank == 0 else None
    other = pc.NetworkHandler((pc.Flatten(), pc.Dense(5)), (1, 11, 9))
    with pytest.raises(CheckpointError, match="is of another training: its layer 1 is"):
        train(comm, network=other, resume=resume)


def verify_twelve_steps(network, n, comm, reproducible=None):
    loss = SoftmaxCrossEntropy()
    return verify(
        network, small.dataset(n), SGD, 25, 0, comm, steps=12, loss=loss, threads=1, reproducible=reproducible
    )


@pytest.mark.parametrize("reproducible", [None, 6])
def test_verifying_finds_all_well_and_leaves_the_network_as_it_was(comm, reproducible):
    network = small.network(seed=comm.rank)
    before = network.state_sha256()
    found = verify_twelve_steps(network, 211, comm, reproducible)
    assert found.startswith(f"12 minibatches on {comm.size} x 1 threads and on one: the same ")
    assert ("the same bits" in found) or reproducible is None
    assert network.state_sha256() == before


class DependsOnItsShare(pc.Dense):
    """Whose gradient is another one where there are many ranks."""

    def backward(self, step, dy):
        dx = super().backward(step, dy)
        if step.n < 20:  # a share, not the whole minibatch
            step.call(np.multiply, step.grads["weight"], np.float32(1.01), out=step.grads["weight"])
        return dx


def test_verifying_allows_for_rounding_that_grows_over_the_steps(comm):
    """With the default learning rate, the parameters of this training differ by 1e-3 after 20 minibatches."""
    train_set, _ = pc.load_digits(n_train=2_000, n_test=1)
    network, loss = pc.NetworkHandler(pc.paper(), train_set.input_shape), SoftmaxCrossEntropy()
    options = {"steps": 20, "loss": loss, "threads": 1, "reproducible": None}
    assert "the same" in verify(network, train_set, pc.SGD(0.1), 100, 0, comm, **options)


def test_verifying_finds_a_layer_that_many_ranks_compute_differently(comm):
    if comm.size == 1:
        pytest.skip("takes two ranks")
    network = pc.NetworkHandler((pc.Flatten(), DependsOnItsShare(5)), (1, 11, 9))
    with pytest.raises(ReplicaMismatchError, match="in minibatch 1 the gradients differ by"):
        verify_twelve_steps(network, 100, comm)


def test_all_ranks_write_one_file_and_not_the_same_one(comm, shared_folder):
    train(comm, 2, checkpoints=pc.CheckpointFolder(shared_folder, every_steps=1, keep_last=100))
    comm.barrier()
    files = run_together(comm, lambda: sorted(os.listdir(shared_folder)))
    assert files == [f"step-{step:09}.npz" for step in range(1, 19)]
    digests = {hashlib.sha256((shared_folder / file).read_bytes()).hexdigest() for file in files}
    assert len(digests) == 18
