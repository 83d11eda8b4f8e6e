"""A network with everything in it: the same bits on any number of ranks and threads, resumed, and after lost ranks."""

import json
import sys
from pathlib import Path

import everything
import launch
import numpy as np
import pytest
from thread_ranks import on_ranks

import parallelcnn as pc

HERE = Path(__file__).parent

_TRAINS = """
import json, sys
import everything
import parallelcnn as pc
from parallelcnn.resilience.world import world

comm = world()
middle = pc.load_checkpoint(sys.argv[1])
hashes = []
for threads in (1, 2):
    for resume in (None, middle):
        network = everything.network(seed=comm.rank)  # rank 0's weights count
        everything.train(network, comm, threads=threads, reproducible=everything.SHARDS, resume=resume)
        hashes.append(network.state_sha256())
everyone = comm.allgather(hashes)
assert all(one == everyone[0] for one in everyone)
if comm.rank == 0:
    print(json.dumps(hashes), flush=True)
"""

_LOSES_RANKS = """
import os, signal, warnings
import everything
from parallelcnn.resilience.world import world

comm = world()
started_as = comm.rank

class Dies:
    def on_batch_end(self, step, logs):
        if (started_as, step) in ((0, 5), (2, 14)):
            os.kill(os.getpid(), signal.SIGKILL)

network = everything.network(seed=started_as)
with warnings.catch_warnings(action="ignore"):
    everything.train(network, comm, callbacks=[Dies()], threads=1, reproducible=everything.SHARDS)
print(network.state_sha256(), flush=True)
comm.barrier()
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(hash, checkpoint from the middle of the second epoch) of one process with one thread."""
    folder = tmp_path_factory.mktemp("alone")
    network, options = everything.network(), {"threads": 1, "reproducible": everything.SHARDS}
    checkpoints = pc.CheckpointFolder(folder, every_steps=7, keep_last=9)
    everything.train(network, pc.Serial(), checkpoints=checkpoints, **options)
    return network.state_sha256(), folder / "step-000000014.npz"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.filterwarnings("ignore:.* have nothing to do:parallelcnn.errors.TrainingWarning")
def test_reproducible_training_gives_the_same_bits(ranks, threads, alone):
    def work(comm):
        network = everything.network(seed=comm.rank)  # rank 0's weights count
        everything.train(network, comm, threads=threads, reproducible=everything.SHARDS, timeout=0)
        return network.state_sha256()

    assert set(on_ranks(ranks, work)) == {alone[0]}


def test_a_resume_in_the_middle_of_an_epoch_gives_the_same_bits(alone):
    expected, file = alone
    network = everything.network(seed=3)
    resume = pc.load_checkpoint(file)
    everything.train(network, pc.Serial(), threads=2, reproducible=everything.SHARDS, resume=resume)
    assert network.state_sha256() == expected


@pytest.mark.filterwarnings("ignore:.* have nothing to do:parallelcnn.errors.TrainingWarning")
def test_without_reproducible_each_step_agrees_to_rounding():
    """Compared after two minibatches. Over more steps Adam's divisions by small numbers make rounding errors grow."""
    states = []
    for threads in (1, 3):
        network, countdown = everything.network(), iter([False, True])
        everything.train(network, pc.Serial(), threads=threads, stop=lambda countdown=countdown: next(countdown))
        states.append((network.params.copy(), network.buffers.copy()))
    (params, buffers), (other_params, other_buffers) = states
    np.testing.assert_allclose(other_params, params, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other_buffers, buffers, rtol=1e-4, atol=1e-5)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_ranks_of_mpi_give_the_same_bits_also_after_a_resume(ranks, alone):
    expected, file = alone
    ran = launch.run_ranks(ranks, ["-c", _TRAINS, str(file)], PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == [expected] * 4


@pytest.mark.mpi
def test_after_lost_ranks_the_bits_are_those_of_an_undisturbed_run(alone):
    launch.skip_unless_ranks_can_be_lost()
    line = [launch.mpiexec(), "--with-ft", "ulfm", "-n", "3", sys.executable, "-c", _LOSES_RANKS]
    ran = launch.run(line, limit=100, PYTHONPATH=str(HERE))
    assert ran.code == 0, ran.err
    assert ran.out.split() == [alone[0]]
