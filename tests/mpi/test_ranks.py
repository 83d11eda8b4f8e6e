"""Run by test_mpi.py on 1, 2, 3 and 4 ranks: together they must do what one process does.

An assertion that fails on one rank alone leaves the others waiting; `-m mpi4py` then ends the job.
"""

import hashlib
import os
import pickle
import tempfile
import time

import numpy as np
import pytest
import small
import traced
from numba import njit
from numba.core import event

import parallelcnn as pc
from parallelcnn.comm import MPITransport, run_together, share_on_node, shared_file
from parallelcnn.errors import (
    DataError,
    DivergenceError,
    InputError,
    ParallelCNNError,
    RankLostError,
    ReplicaMismatchError,
)
from parallelcnn.profiling.clocks import clock_offset
from parallelcnn.profiling.stamps import ARRIVED, SUMMED
from parallelcnn.profiling.trace import trace
from parallelcnn.resilience.fault_tolerance import FaultTolerantTransport
from parallelcnn.resilience.world import world
from parallelcnn.resources import usable_cores
from parallelcnn.training.compilation import compile_in_turns
from parallelcnn.training.threads import choose_threads

# The bound that we hold: every loss and every parameter of the run on N ranks is that of the run on one, up to
# 1e-5 + 1e-5 times its size after three epochs. Measured are at most 1e-6; float32 resolves 6e-8.
BOUND = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def comm():
    return world()


def test_all_ranks_that_were_started_are_here(comm):
    assert comm.size == int(os.environ["PARALLELCNN_MPI_TESTS"])
    assert comm.allgather(comm.rank) == list(range(comm.size))


def run(comm, batch_size, optimizer=None, network_seed=0, seed=0, epochs=3, **options):
    network = small.network(network_seed)
    optimizer = optimizer or pc.SGD(0.1)
    sets = small.dataset(211), small.dataset(97, seed=1)
    history = pc.train(network, *sets, optimizer, epochs, batch_size, seed, comm, **options)
    return network, history


@pytest.mark.parametrize("batch_size", [100, 101, 7, 2, 1, 211])
@pytest.mark.parametrize("optimizer", [pc.SGD(0.1), pc.SGD(0.02, momentum=0.9, nesterov=True, weight_decay=1e-3)])
def test_losses_and_parameters_are_those_of_one_process(comm, batch_size, optimizer):
    """211 samples are a multiple of nothing: the last minibatch has 11, 9 or 1, fewer than there may be ranks."""
    network, history = run(comm, batch_size, optimizer, evaluate_every=5)
    alone, history_alone = run(pc.Serial(), batch_size, optimizer, evaluate_every=5)
    np.testing.assert_allclose(network.params, alone.params, **BOUND)
    np.testing.assert_allclose(history.losses, history_alone.losses, **BOUND)
    assert len(history.evaluations) == len(history_alone.evaluations)
    for (step, _, result), (step_alone, _, result_alone) in zip(
        history.evaluations, history_alone.evaluations, strict=True
    ):
        assert step == step_alone
        assert result.samples == result_alone.samples == 97
        assert result.loss == pytest.approx(result_alone.loss, rel=1e-5)


@pytest.mark.parametrize("threads", [2, "as many as the rank"])
@pytest.mark.parametrize("batch_size", [101, 7, 1])
def test_ranks_of_several_threads_are_one_process(comm, batch_size, threads):
    """Ranks may differ in threads; those without a number take part in it too."""
    mine = 2 if threads == 2 else comm.rank or None
    network, history = run(comm, batch_size, evaluate_every=5, threads=mine)
    alone, history_alone = run(pc.Serial(), batch_size, evaluate_every=5, threads=1)
    np.testing.assert_allclose(network.params, alone.params, **BOUND)
    np.testing.assert_allclose(history.losses, history_alone.losses, **BOUND)
    for (_, _, result), (_, _, wanted) in zip(history.evaluations, history_alone.evaluations, strict=True):
        assert result.samples == 97
        assert result.loss == pytest.approx(wanted.loss, rel=1e-5)
    again, _ = run(comm, batch_size, evaluate_every=5, threads=mine)
    assert len(set(comm.allgather(network.parameters_sha256()) + comm.allgather(again.parameters_sha256()))) == 1


def test_all_threads_of_a_node_together_are_no_more_than_its_cores(comm):
    cores = len(frozenset.union(*comm.allgather(usable_cores())))
    assert sum(comm.allgather(choose_threads(comm, None))) <= max(cores, comm.size)
    assert choose_threads(comm, 5) == choose_threads(comm, 5, multiply_adds=1) == 5
    assert choose_threads(comm, None, multiply_adds=1) == 1
    assert choose_threads(comm, None, multiply_adds=10**15) == choose_threads(comm, None)


def test_a_number_of_threads_that_only_one_rank_has_wrong_is_an_error_on_all(comm):
    with pytest.raises(InputError, match="threads must be an integer of at least 1, got 0"):
        run(comm, 10, threads=0 if comm.rank == comm.size - 1 else 1)


def test_ranks_that_start_from_different_seeds_end_with_equal_parameters(comm):
    network, history = run(comm, 20, network_seed=comm.rank, seed=comm.rank)
    alone, history_alone = run(pc.Serial(), 20)  # rank 0's seeds
    assert len(set(comm.allgather(network.parameters_sha256()))) == 1
    assert len({tuple(losses) for losses in comm.allgather(history.losses)}) == 1
    np.testing.assert_allclose(network.params, alone.params, **BOUND)
    np.testing.assert_allclose(history.losses, history_alone.losses, **BOUND)


def test_an_optimizer_that_has_moved_on_one_rank_only_does_not_part_the_ranks(comm):
    network = small.network()
    optimizer = pc.SGD(0.1, momentum=0.9)
    if comm.rank == 0:
        network.gradients[:] = 1
        network.update(optimizer)
    pc.train(network, small.dataset(50), small.dataset(9), optimizer, 1, 10, comm=comm)
    assert len(set(comm.allgather(network.parameters_sha256()))) == 1


def test_the_same_run_twice_gives_the_same_bits(comm):
    first, second = (run(comm, 25)[0].parameters_sha256() for _ in range(2))
    assert first == second
    assert len(set(comm.allgather(first))) == 1


def test_evaluation_in_shares_is_exact(comm):
    network, _ = run(comm, 25, epochs=1)
    for n in (1, 2, 3, 97, 101):
        dataset = small.dataset(n, seed=3)
        together, alone = pc.evaluate(network, dataset, comm), pc.evaluate(network, dataset, pc.Serial())
        assert together.accuracy == alone.accuracy
        assert together.samples == n
        assert together.loss == pytest.approx(alone.loss, rel=1e-6)


def test_ranks_that_were_called_with_different_arguments_are_told_so(comm):
    if comm.size == 1:
        pytest.skip("takes two ranks")
    last = comm.rank == comm.size - 1
    sets = small.dataset(50), small.dataset(20)
    for other, message in (
        ({"epochs": 3}, f"rank 0 has epochs 2, but rank {comm.size - 1} has 3"),
        ({"train_set": small.dataset(49)}, r"rank 0 has train_set uint8 of shape \(50, 11, 9\)"),
        ({"test_set": small.dataset(20, seed=9)}, "rank 0 has test_set uint8 .* labels [0-9a-f]{8}, but rank"),
        ({"network": pc.NetworkHandler((pc.Flatten(), pc.Dense(5)), (1, 11, 9))}, "rank 0 has layers"),
    ):
        arguments = {
            "network": small.network(),
            "train_set": sets[0],
            "test_set": sets[1],
            "optimizer": pc.SGD(0.1),
            "epochs": 2,
            "batch_size": 10,
        }
        with pytest.raises(ReplicaMismatchError, match=message):
            pc.train(**{**arguments, **(other if last else {})}, comm=comm)


def test_an_argument_that_only_one_rank_has_wrong_is_an_error_on_all(comm):
    with pytest.raises(InputError, match="batch_size must be an integer of at least 1, got 0"):
        run(comm, 0 if comm.rank == comm.size - 1 else 10)


def test_a_loss_that_is_no_number_stops_all_ranks_in_the_same_step(comm):
    with np.errstate(all="ignore"), pytest.raises(DivergenceError) as caught:
        run(comm, 10, pc.SGD(1e38))
    assert len(set(comm.allgather(str(caught.value)))) == 1


def test_what_one_rank_of_a_node_loads_all_of_them_see_in_one_copy(comm):
    calls = []

    def load():
        calls.append(comm.rank)
        return small.dataset(300), small.dataset(40, seed=1)

    train_set, test_set = share_on_node(comm, load)
    assert calls == ([comm.rank] if comm.rank == comm.ranks_on_node()[0] else [])
    for dataset, wanted in ((train_set, small.dataset(300)), (test_set, small.dataset(40, seed=1))):
        np.testing.assert_array_equal(dataset.images, wanted.images)
        np.testing.assert_array_equal(dataset.labels, wanted.labels)
        assert dataset.name == wanted.name
        if len(comm.ranks_on_node()) > 1:
            assert not dataset.images.flags.writeable
    if len(comm.ranks_on_node()) > 1:
        assert len(set(comm.allgather(shared_file(train_set.images)))) == 1
        assert shared_file(train_set.images) is not None


def test_on_several_nodes_one_rank_of_each_loads_and_rank_0_first(comm):
    """Even and odd ranks stand for two nodes."""
    from mpi4py import MPI

    ranks = MPITransport(MPI.COMM_WORLD)
    ranks.ranks_on_node = lambda: list(range(comm.rank % 2, comm.size, 2))
    before = []
    # Not pytest's tmp_path: the pytests of the ranks would clean up one folder together, and trip over each other.
    with tempfile.TemporaryDirectory() as folder:
        downloaded = comm.allgather(f"{folder}/file")[0]

        def load():
            before.append(os.path.exists(downloaded))
            open(downloaded, "w").close()
            return small.dataset(30)

        dataset = share_on_node(ranks, load)
        comm.barrier()
    np.testing.assert_array_equal(dataset.images, small.dataset(30).images)
    assert before == {0: [False], 1: [True]}.get(comm.rank, [])


def test_a_folder_for_temporary_files_without_room_is_named(comm, monkeypatch):
    if comm.size == 1:
        pytest.skip("one rank writes no file")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("parallelcnn.comm.sharing._MEMORY_SHARE", 0)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(DataError, match="No space left on device; TMPDIR names another folder"):
        share_on_node(comm, lambda: small.dataset(30))


def test_data_that_cannot_be_loaded_is_an_error_on_all_ranks(comm):
    def load():
        raise DataError("nothing there")

    with pytest.raises(DataError, match="nothing there"):
        share_on_node(comm, load)


def test_a_failure_of_one_rank_is_raised_on_all_and_names_it(comm):
    def work():
        if comm.rank == comm.size - 1:
            raise ZeroDivisionError("by zero")
        return comm.rank

    with pytest.raises(ParallelCNNError, match=f"rank {comm.size - 1} of {comm.size} failed") as caught:
        run_together(comm, work)
    assert "ZeroDivisionError: by zero" in str(caught.value)
    assert run_together(comm, lambda: comm.rank) == comm.rank


def test_an_error_of_mpi_is_one_line_that_names_the_call(monkeypatch):
    """MPICH raises one with a stack of ten lines where another rank is killed while this one reads its memory."""
    from mpi4py import MPI

    alone = MPITransport(MPI.COMM_SELF)
    alone.barrier()

    class Failing:
        def Allreduce(self, *_):
            raise MPI.Exception(MPI.ERR_OTHER)

    monkeypatch.setattr(alone, "mpi_comm", Failing())
    with pytest.raises(ParallelCNNError, match=r"^MPI failed in allreduce, .* another rank is lost: [^\n]+$") as raised:
        alone.allreduce(np.zeros(2))
    assert not isinstance(raised.value, RankLostError)


@pytest.mark.parametrize(
    ("transport", "error"),
    [(MPITransport, pickle.UnpicklingError), (FaultTolerantTransport, RankLostError)],
)
def test_values_that_cannot_be_read_are_those_of_a_lost_rank_where_ranks_can_be_lost(transport, error):
    from mpi4py import MPI

    alone = transport(MPI.COMM_SELF)
    alone._ranks_on_node = [0]

    class Garbling:
        def Ibarrier(self):
            return MPI.COMM_SELF.Ibarrier()

        def allgather(self, _):
            return [pickle.loads(b"\xc0")]

        def Revoke(self):
            pass

        def Iagree(self, _):  # alone it is at once, and what was said
            return MPI.COMM_SELF.Ibarrier()

    alone.mpi_comm = Garbling()
    with pytest.raises(error):
        alone.allgather(1)


def test_half_of_the_ranks_can_train_on_their_own(comm):
    from mpi4py import MPI

    half = MPI.COMM_WORLD.Split(comm.rank % 2, comm.rank)
    network, _ = run(half, 20, network_seed=comm.rank % 2)
    alone, _ = run(pc.Serial(), 20, network_seed=comm.rank % 2)
    np.testing.assert_allclose(network.params, alone.params, **BOUND)
    half.Free()


def test_no_communicator_means_the_world_that_was_launched(comm):
    network, _ = run(None, 25)
    digests = comm.allgather(hashlib.sha256(network.params.tobytes()).hexdigest())
    assert len(set(digests)) == 1
    assert comm.size == 1 or isinstance(world(), MPITransport)


def test_ranks_compile_in_turns(comm):
    kernel = njit(lambda x: x + 1)  # in no cache
    with event.install_recorder("numba:compile") as compilations:
        compile_in_turns(comm, lambda: kernel(1))
    began, ended = (clock for clock, _ in compilations.buffer[-2:])
    assert [record.is_start for _, record in compilations.buffer[-2:]] == [True, False]
    times = comm.allgather((began, ended))
    assert all(began >= times[0][1] for began, _ in times[1:])


def test_no_rank_waits_for_its_turn_if_all_kernels_are_in_the_cache(comm):
    times = []

    def work():
        times.append(time.perf_counter())
        time.sleep(0.3)
        times.append(time.perf_counter())

    compile_in_turns(comm, work)
    everyone = comm.allgather(times)
    assert all(len(times) == 2 for times in everyone), "done once"
    assert max(began for began, _ in everyone) < min(ended for _, ended in everyone)


def test_a_step_allocates_no_memory_for_numbers_nor_does_the_sum_over_ranks(comm):
    """Enough samples a rank for an array with one byte for each to be larger than the bound."""
    bound = 4096
    batch_size = (bound + 1) * comm.size
    steps = traced.TracedSteps()
    run_of = small.dataset(3 * batch_size), small.dataset(97, seed=1), pc.SGD(0.1), 2, batch_size
    pc.train(small.network(), *run_of, comm=comm, callbacks=[steps], verbose=0)
    assert steps.steps == 2
    assert max(comm.allgather(steps.peak)) <= bound


def test_the_distance_of_two_clocks_of_one_machine_is_nothing_within_the_error_it_names(comm):
    """The ranks of these tests share one machine and its clock, so a clock that is set wrong is found out."""
    wrong = 10**12 * comm.rank + 17
    offset, error = clock_offset(comm, lambda: time.perf_counter_ns() + wrong)
    wanted = comm.allgather(wrong)[0] - wrong
    assert abs(offset - wanted) <= error
    assert error < 10**7  # 10 ms, on cores that are shared
    assert (error == 0) == (comm.rank == 0)


def test_the_largest_over_ranks_is_taken_element_by_element(comm):
    array = np.array([comm.rank, -comm.rank, 7])
    comm.allreduce_max(array)
    np.testing.assert_array_equal(array, [comm.size - 1, 0, 7])


class SlowReporter:
    """Keeps its rank back, 5 ms a step."""

    def on_batch_end(self, step, logs):
        time.sleep(0.005)

    def on_test_end(self, logs):
        pass


def test_a_profile_of_ranks_with_different_numbers_of_threads_shows_the_same_steps_of_all(comm, monkeypatch):
    profiler = pc.Profiler()
    monkeypatch.setattr("parallelcnn.profiling.profiler._TRACE_EVENTS", 200)
    run(comm, 25, epochs=1, threads=1 + comm.rank % 2, profiler=profiler)
    assert [found.threads for found in profiler.profile.ranks] == [1 + rank % 2 for rank in range(comm.size)]
    shown = {(found.first_step, len(found.trace_steps)) for found in profiler.profile.ranks}
    assert len(shown) == 1
    assert len(trace(profiler.profile)["traceEvents"]) <= 200
    assert f"of 1{' to 2' if comm.size > 1 else ''} thread" in profiler.table()


def test_a_profile_shows_who_waits_for_whom(comm):
    profiler = pc.Profiler(trace_steps=6)
    plain, _ = run(comm, 25)
    callbacks = [SlowReporter()] if comm.rank == comm.size - 1 else []
    network, history = run(comm, 25, callbacks=callbacks, profiler=profiler)
    assert network.parameters_sha256() == plain.parameters_sha256()

    profile = profiler.profile
    assert [rank.steps for rank in profile.ranks] == [27] * comm.size
    assert sum(rank.samples for rank in profile.ranks) == 3 * 211
    seconds = comm.allgather(history.train_seconds)
    for rank, found in enumerate(profile.ranks):
        # The system may stop a rank between two looks at the clock, for 0.1 s where there are fewer cores than ranks.
        assert 0.9 * seconds[rank] - 0.05 < found.total.sum() < 1.05 * seconds[rank] + 0.15
        median = dict(zip(profile.phases, found.median, strict=True))
        last = rank == comm.size - 1
        assert (median["wait"] < 0.002) if last else (median["wait"] > 0.003)
        assert (median["report"] >= 0.005) if last else (median["report"] < 0.002)

    # One clock for all: nobody leaves a sum before the last has come to it.
    ends = [found.trace_steps[:, SUMMED] for found in profile.ranks]
    arrivals = [found.trace_steps[:, ARRIVED] for found in profile.ranks]
    error = 1e9 * sum(found.clock_error for found in profile.ranks)
    assert (np.min(ends, axis=0) >= np.max(arrivals, axis=0) - error).all()
    assert len(ends[0]) == 6
    assert len(set(comm.allgather(profiler.table()))) == 1
