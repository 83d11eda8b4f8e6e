"""Threads within a rank: they do what one does, leave with the training, and are as many as there are cores for."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import small
from launch import environment
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock

import parallelcnn as pc
from parallelcnn.errors import DivergenceError, InputError
from parallelcnn.kernels.losses import count_correct
from parallelcnn.kernels.waiting import tell_and_wait
from parallelcnn.replica import Replica
from parallelcnn.resilience.launch import launched_rank, launched_ranks
from parallelcnn.resources import core_quota, usable_cores
from parallelcnn.training.thread_pool import ThreadPool
from parallelcnn.training.threads import fair_share

# As for ranks: see tests/mpi/test_ranks.py.
BOUND = {"rtol": 1e-5, "atol": 1e-5}


def train(threads, batch_size=25, epochs=3, layers=small.LAYERS, optimizer=None, **options):
    network = pc.NetworkHandler(layers, (1, 11, 9))
    sets = small.dataset(211), small.dataset(97, seed=1)
    optimizer = optimizer or pc.SGD(0.1)
    history = pc.train(network, *sets, optimizer, epochs, batch_size, comm=pc.Serial(), threads=threads, **options)
    return network, history


@pytest.mark.parametrize("threads", [2, 3, 30])
@pytest.mark.parametrize("batch_size", [100, 7, pytest.param(1, marks=pytest.mark.slow), 211])
def test_losses_and_parameters_are_those_of_one_thread(threads, batch_size):
    """211 samples are a multiple of nothing, and with 30 threads there are more than samples in the last minibatch."""
    network, history = train(threads, batch_size, evaluate_every=5)
    alone, history_alone = train(1, batch_size, evaluate_every=5)
    np.testing.assert_allclose(network.params, alone.params, **BOUND)
    np.testing.assert_allclose(history.losses, history_alone.losses, **BOUND)
    results = [result for _, _, result in history.evaluations]
    for result, wanted in zip(results, [result for _, _, result in history_alone.evaluations], strict=True):
        assert result.samples == 97
        assert result.loss == pytest.approx(wanted.loss, rel=1e-5)


def test_a_loss_of_one_s_own_never_gets_an_empty_share():
    """The last minibatch has 11 samples for 15 threads: `max` of nothing would raise."""

    @dataclass(frozen=True)
    class Stable:
        def check(self, output_shape, labels, classes): ...

        def forward_backward(self, outputs, labels, batch_size, doutputs):
            assert outputs.max() < np.inf
            return pc.SoftmaxCrossEntropy().forward_backward(outputs, labels, batch_size, doutputs)

    network, history = train(15, epochs=2, loss=Stable())
    plain, plain_history = train(1, epochs=2)
    np.testing.assert_allclose(history.losses, plain_history.losses, **BOUND)
    np.testing.assert_allclose(network.params, plain.params, **BOUND)


def test_the_same_number_of_threads_twice_gives_the_same_bits():
    first, second = (train(3)[0].parameters_sha256() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_evaluation_on_threads_is_exact(threads):
    network, _ = train(1, epochs=1)
    for n in (1, 2, 97, 250):
        dataset = small.dataset(n, seed=3)
        alone = pc.evaluate(network, dataset, pc.Serial(), threads=1)
        result = pc.evaluate(network, dataset, pc.Serial(), threads=threads)
        assert result.accuracy == alone.accuracy
        assert result.samples == n
        assert result.loss == pytest.approx(alone.loss, rel=1e-6)


def test_each_thread_works_on_its_own_shard_at_the_same_time():
    network = small.network()
    everyone = threading.Barrier(3, timeout=10)

    def work(worker, samples):
        everyone.wait()  # would break if one did its work after the other
        return worker, samples.tolist()

    with ThreadPool(network.replicas(3)) as pool:
        outcomes = pool.run(work, np.arange(8))
    assert outcomes == list(zip(network.replicas(3), [[0, 1], [2, 3, 4], [5, 6, 7]], strict=True))
    assert outcomes[0][0] is network.replica


@dataclass(frozen=True, repr=False)
class Fails(pc.Activation):
    """Raises an error on one of the threads, in the middle of the second epoch."""

    error: type = ValueError
    main: bool = False
    passes = []  # noqa: RUF012

    def backward(self, step, dy):
        step.call(self._fail)
        return super().backward(step, dy)

    def _fail(self):
        if (threading.current_thread() is threading.main_thread()) == self.main:
            Fails.passes.append(1)
            if len(Fails.passes) == 12:
                raise self.error("on purpose")


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, pc.ParallelCNNError])
def test_what_a_layer_raises_on_any_thread_ends_the_training_and_the_threads(main, error):
    Fails.passes.clear()
    before = threading.enumerate()
    with pytest.raises(error, match="on purpose"):
        train(3 if main else 2, layers=(*small.LAYERS, Fails("identity", error, main)))
    assert len(Fails.passes) == 12
    assert threading.enumerate() == before


def test_of_several_errors_the_first_workers_is_raised():
    def work(worker, samples):
        if samples[0] > 0:
            raise ValueError(f"of {samples[0]}")

    with ThreadPool(small.network().replicas(3)) as pool, pytest.raises(ValueError, match="of 2"):
        pool.run(work, np.arange(8))


def test_a_team_whose_thread_has_failed_is_not_out_of_step():
    """The outcome of a failed run must not be taken for that of the next one."""
    with ThreadPool(small.network().replicas(2)) as pool:
        for main_fails in (True, False):

            def work(worker, samples, main_fails=main_fails):
                if main_fails == (samples[0] == 0):
                    raise ValueError("on purpose")

            with pytest.raises(ValueError, match="on purpose"):
                pool.run(work, np.arange(4))
            assert pool.run(lambda worker, samples: int(samples[0]), np.arange(10, 14)) == [10, 12]


@pytest.mark.parametrize(("samples", "threads"), [(1, 1), (100, 1), (200, 2), (1000, 4)])
def test_as_many_threads_as_there_are_cores_compute_if_they_have_enough_to_do(samples, threads, monkeypatch):
    """100 samples forwards through the paper's network, as it runs, are 15 million multiplications."""
    monkeypatch.setattr("parallelcnn.training.threads.usable_cores", lambda: frozenset(range(4)))
    monkeypatch.setattr("parallelcnn.training.threads.core_quota", lambda: None)
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    dataset = pc.Dataset(np.zeros((samples, 28, 28), np.uint8), np.zeros(samples, np.int64), 10)
    computing = set()
    load = Replica.load

    def noting(*arguments, **options):
        computing.add(threading.get_ident())
        return load(*arguments, **options)

    monkeypatch.setattr(Replica, "load", noting)
    pc.evaluate(network, dataset, pc.Serial())
    assert len(computing) == threads


def test_no_thread_is_left_after_training_and_evaluation():
    before = threading.enumerate()
    network, _ = train(4)
    pc.evaluate(network, small.dataset(9), pc.Serial(), threads=4)
    assert threading.enumerate() == before


def wait_until_all_workers_have_left():
    until = time.monotonic() + 10
    while any(thread.name == "parallelcnn worker" for thread in threading.enumerate()):
        assert time.monotonic() < until, "a worker's thread is left"
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["start", "join"])
def test_no_thread_is_left_by_an_interrupt_that_comes_while_threads_start_or_end(where, monkeypatch):
    method, interrupted = getattr(threading.Thread, where), []

    def interrupt_once(thread, *arguments):
        if thread.name != "parallelcnn worker" or interrupted:
            return method(thread, *arguments)
        interrupted.append(thread)
        if where == "start":
            method(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, where, interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        train(4, epochs=1)
    wait_until_all_workers_have_left()


def test_no_thread_is_left_by_a_team_that_an_interrupt_kept_from_leaving():
    pool = ThreadPool(small.network().replicas(3))
    pool.__enter__()
    del pool
    wait_until_all_workers_have_left()


def test_an_interrupt_while_numba_compiles_does_not_keep_other_threads_from_compiling():
    """It leaves numba's lock locked; the other threads, and who waits for them, then waited for ever."""
    first, *_ = workers = small.network().replicas(2)
    got_it = []

    def compile_something(worker, _):
        if worker is first:
            global_compiler_lock.acquire()
            raise KeyboardInterrupt
        got_it.append(global_compiler_lock._lock.acquire(timeout=10))
        global_compiler_lock.release()

    with ThreadPool(workers) as pool, pytest.raises(KeyboardInterrupt):
        pool.run(compile_something, np.arange(2))
    assert got_it == [True]
    global_compiler_lock.acquire()  # by an interrupt between two trainings
    with ThreadPool(workers):
        assert not global_compiler_lock.is_locked()


@dataclass(frozen=True, repr=False)
class Overflows(pc.Activation):
    """Numbers too large for float32, and a division by zero, if asked to."""

    by_zero: bool = False

    def forward(self, step, x):
        y = step.array(x.shape[:-1])
        step.call(self._overflow, x, y, step.training)
        step.save(y)
        return y

    def _overflow(self, x, y, training):
        compiling = x.shape[-1] not in range(2, 26)  # no share of a minibatch of 25: before there are threads
        y[...] = x / np.float32(0 if self.by_zero and not compiling else 1)
        if training:
            y *= np.float32(1e38)
            y *= np.float32(1e38)


def test_numpy_treats_errors_on_threads_as_on_the_main_thread():
    """An overflow is told by the loss; everything else as the caller has set it, here by conftest.py: raise."""
    for threads in (1, 3):
        with pytest.raises(DivergenceError):
            train(threads, layers=(*small.LAYERS, Overflows("identity")))
        with pytest.raises(FloatingPointError, match="divide by zero"):
            train(threads, layers=(*small.LAYERS, Overflows("identity", by_zero=True)))


def test_a_thread_that_waits_without_sleep_sees_what_another_thread_tells():
    flags = np.zeros(9, np.int64)
    tell_and_wait(flags, 0, 0, 8, 0, 0, 0)
    forever = 10**9  # some seconds
    other = threading.Thread(target=lambda: tell_and_wait(flags, 8, 7, 0, 5, forever, 0))
    other.start()
    tell_and_wait(flags, 0, 4, 8, 7, forever, 0)
    assert other.is_alive()
    tell_and_wait(flags, 0, 5, 8, 7, forever, 0)
    other.join(10)
    assert not other.is_alive()


def test_a_thread_that_waits_without_sleep_gives_up_after_as_many_pauses_as_it_was_told():
    flags = np.zeros(9, np.int64)
    tell_and_wait(flags, 0, 3, 8, 1, 1000, 10)
    assert flags[0] == 3


def test_threads_that_have_fallen_asleep_go_on():
    pool_of_two = [pc.NetworkHandler(small.LAYERS, (1, 11, 9)).replica for _ in range(2)]
    with ThreadPool(pool_of_two) as pool:
        for _ in range(3):
            time.sleep(0.05)  # far longer than threads look out before they sleep
            assert pool.run(lambda worker, samples: len(samples), np.arange(5)) == [2, 3]


class CompilingThreads(event.Listener):
    def __init__(self):
        self.seen = set()

    def on_start(self, event):
        self.seen.add(threading.current_thread())

    def on_end(self, event):
        pass


def test_nothing_is_compiled_on_two_threads_at_once():
    """The activation is new, and compiled in any case; and full vectors of samples are convolved in another way than
    one sample is.
    """
    new = pc.ActivationFunction("new", lambda x: x + abs(x) / 3, lambda x: 4 / 3 if x > 0 else 2 / 3)
    layers = (pc.Conv2D(32, 3), pc.Conv2D(33, 3, padding="same", activation=new), pc.Flatten(), pc.Dense(5))
    listener = CompilingThreads()
    event.register("numba:compile", listener)
    try:
        train(3, layers=layers, epochs=1, batch_size=96)
        compiled_in_training = len(listener.seen)
        network = pc.NetworkHandler(layers, (1, 11, 9))
        pc.evaluate(network, small.dataset(97), pc.Serial(), threads=3)
    finally:
        event.unregister("numba:compile", listener)
    assert compiled_in_training == 1
    assert listener.seen == {threading.main_thread()}
    # Once for each type of arrays, of which other tests may have used others in this process.
    assert len(set(count_correct.signatures)) == len(count_correct.signatures)


@pytest.mark.slow
def test_an_interrupt_ends_the_command_within_seconds(tmp_path):
    command = [sys.executable, "-m", "parallelcnn", "train", "--threads", "2", "--epochs", "1000"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGINT)
    sent = time.perf_counter()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("parallelcnn: interrupted: stopped after minibatch ")
    assert time.perf_counter() - sent < 5


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_what_is_no_number_of_threads_is_refused(threads):
    message = f"threads must be an integer of at least 1, got {threads!r}"
    with pytest.raises(InputError, match=message):
        train(threads)
    with pytest.raises(InputError, match=message):
        pc.evaluate(small.network(), small.dataset(9), pc.Serial(), threads=threads)


@pytest.mark.parametrize(
    ("threads", "message"),
    [
        (4097, "threads must be at most 4,096, which is more cores than machines have, got 4097"),
        (4000, "the gradients and activations of 4000 threads take .* MiB, more than the 64 MiB of this machine"),
    ],
)
def test_threads_for_which_there_is_no_room_are_refused_before_room_is_made_for_them(threads, message, monkeypatch):
    network = pc.NetworkHandler((pc.Flatten(), pc.Dense(100), pc.Dense(5)), (1, 11, 9))
    monkeypatch.setattr(os, "sysconf", lambda name: 2**13)  # pages, and their size
    monkeypatch.setattr(network, "replicas", lambda count: pytest.fail(f"made room for {count} threads"))
    sets = small.dataset(9), small.dataset(9)
    with pytest.raises(InputError, match=message):
        pc.train(network, *sets, pc.SGD(0.1), 1, 9, comm=pc.Serial(), threads=threads)
    with pytest.raises(InputError, match=message):
        pc.evaluate(network, sets[0], pc.Serial(), threads=threads)


def test_more_threads_than_the_machine_starts_are_refused_and_those_that_were_started_leave(monkeypatch):
    before, start = threading.enumerate(), threading.Thread.start

    def start_three(thread):
        if len(threading.enumerate()) - len(before) == 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    with pytest.raises(InputError, match="threads must be at most 4, more do not start on this machine, got 9"):
        train(9)
    assert threading.enumerate() == before


def everyone(ranks, cores):
    return {rank: frozenset(range(cores)) for rank in range(ranks)}


@pytest.mark.parametrize(
    ("cores", "quota", "wanted"),
    [
        (everyone(1, 8), None, [8]),
        (everyone(2, 8), None, [4, 4]),
        (everyone(3, 8), None, [2, 2, 2]),  # 9 would be more than there are
        (everyone(8, 8), None, [1] * 8),
        (everyone(9, 8), None, [1] * 9),  # at least one
        (everyone(2, 8), 5, [2, 2]),
        (everyone(2, 8), 1, [1, 1]),
        (everyone(2, 8), 100, [4, 4]),
        ({0: frozenset({0}), 1: frozenset({1})}, None, [1, 1]),  # bound to cores of their own
        ({4: frozenset({0, 1, 2, 3}), 5: frozenset({4, 5, 6, 7})}, None, [4, 4]),
        ({0: frozenset({0, 1, 2, 3}), 1: frozenset({3})}, None, [3, 1]),  # half of a core is none
    ],
)
def test_a_rank_has_as_many_threads_as_its_part_of_the_cores(cores, quota, wanted):
    assert [fair_share(rank, cores, quota) for rank in cores] == wanted


def test_without_a_number_there_is_a_thread_for_each_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7})
    monkeypatch.setattr("parallelcnn.training.threads.core_quota", lambda: None)
    monkeypatch.setattr("parallelcnn.training.threads._LEAST_MULTIPLY_ADDS", 1)
    assert usable_cores() == {2, 5, 7}
    before, most = threading.active_count(), []

    class Counts:
        def on_batch_end(self, step, logs):
            most.append(threading.active_count())

    train(None, epochs=1, callbacks=[Counts()])
    assert set(most) == {before + 2}


@pytest.mark.parametrize("number", ["", "two", "-3", "9" * 5000, "\u00b2"])
def test_what_is_no_number_in_the_environment_says_nothing(number, tmp_path, monkeypatch):
    variables = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_CPUS_ON_NODE")
    for variable in variables:
        monkeypatch.setenv(variable, number)
    assert launched_ranks() == (1, "")
    assert core_quota(tmp_path / "none", tmp_path) is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    for variable in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(variable, number)
    assert launched_rank() == 0
