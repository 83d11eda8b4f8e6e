"""Run by test_mpi.py on 1, 2, 3 and 4 ranks: what ranks cannot train over is rejected at once."""

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.resilience.world import world


@pytest.fixture(scope="module")
def mpi():
    world()
    from mpi4py import MPI

    return MPI


def refused(comm, message):
    network = small.network()
    with pytest.raises(InputError, match=message):
        pc.train(network, small.dataset(50), small.dataset(9), pc.SGD(0.1), 1, 10, comm=comm, timeout=0)
    with pytest.raises(InputError, match=message):
        pc.evaluate(network, small.dataset(9), comm)


def test_an_intercommunicator(mpi):
    if mpi.COMM_WORLD.size == 1:
        pytest.skip("takes two ranks")
    odd = mpi.COMM_WORLD.rank % 2
    half = mpi.COMM_WORLD.Split(odd, mpi.COMM_WORLD.rank)
    inter = half.Create_intercomm(0, mpi.COMM_WORLD, 1 - odd)
    refused(inter, r"must be an intracommunicator of mpi4py, got an intercommunicator: its Merge\(\) returns")
    merged = inter.Merge()
    assert np.isfinite(pc.evaluate(small.network(), small.dataset(9), merged).loss)
    for comm in (merged, inter, half):
        comm.Free()


def test_no_communicator_and_a_freed_one(mpi):
    freed = mpi.COMM_WORLD.Dup()
    freed.Free()
    for comm in (mpi.COMM_NULL, freed, mpi.Intracomm()):
        refused(comm, "must be an intracommunicator of mpi4py, got MPI.COMM_NULL: this rank is not part of")


@pytest.mark.parametrize("comm", ["world", 0, pc.Serial, pc.world, object()], ids=repr)
def test_no_communicator_at_all(comm):
    refused(comm, "comm must be None, a communicator of mpi4py or parallelcnn.Serial.., got ")
