"""The profile: it adds up, it tells the right layer, its time line is one, and without it nothing is noted."""

import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import pytest
import small
from idx_files import write_idx_folder
from launch import parallelcnn

import parallelcnn as pc
from parallelcnn.errors import InputError
from parallelcnn.profiling import profiler as profiler_module
from parallelcnn.profiling import stamps
from parallelcnn.profiling.profile import durations_of, flops_of, rates_of
from parallelcnn.profiling.profiler import matrix_rate, on_clock_of_rank_0
from parallelcnn.profiling.trace import trace


def train(network=None, profiler=None, epochs=3, optimizer=None, **options):
    network, optimizer = network or small.network(), optimizer or pc.SGD(0.1)
    sets = small.dataset(211), small.dataset(97, seed=1)
    history = pc.train(
        network, *sets, optimizer, epochs, 25, comm=pc.Serial(), profiler=profiler, **{"threads": 1, **options}
    )
    return network, history


def profiled(*arguments, trace_steps=100, **options):
    profiler = pc.Profiler(trace_steps)
    train(*arguments, profiler=profiler, **options)
    return profiler.profile


def check_time_line(found, ranks, steps):
    """Every event lies within another of its thread or beside it; they are sorted; every rank shows those steps."""
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    events = [event for event in found["traceEvents"] if event["ph"] == "X"]
    names = [event for event in found["traceEvents"] if event["ph"] == "M"]
    assert len(events) + len(names) == len(found["traceEvents"])
    processes = {event["pid"]: event["args"]["name"] for event in names if event["name"] == "process_name"}
    assert {event["pid"] for event in events} == set(processes)
    assert [processes[pid].split()[:2] for pid in sorted(processes)] == [["rank", str(rank)] for rank in range(ranks)]
    threads = [(event["pid"], event["tid"]) for event in names if event["name"] == "thread_name"]
    assert set(threads) == {(event["pid"], event["tid"]) for event in events}
    # What Perfetto needs to tell the threads apart.
    assert 0 not in processes
    assert len({tid for _, tid in threads}) == len(threads)
    assert set(processes) == {min(tid for of, tid in threads if of == pid) for pid in processes}
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)
    assert events[0]["ts"] == 0
    open_until = defaultdict(list)
    for event in events:
        begin, end = event["ts"], event["ts"] + event["dur"]
        assert event["dur"] >= 0
        around = open_until[event["pid"], event["tid"]]
        while around and around[-1] <= begin + 1e-6:
            around.pop()
        assert not around or end <= around[-1] + 1e-6, event
        around.append(end)
    for process in processes:
        shown = [event["name"] for event in events if event["pid"] == process and event["name"].startswith("step ")]
        assert shown == [f"step {number}" for number in steps]
    return events


@dataclass(frozen=True, repr=False)
class Slow(pc.Layer):
    """Sleeps: some milliseconds forwards, and some backwards."""

    forward_ms: float
    backward_ms: float

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, step, x):
        step.call(time.sleep, self.forward_ms / 1e3)
        return x

    def backward(self, step, dy):
        step.call(time.sleep, self.backward_ms / 1e3)
        return dy


def test_the_papers_network_takes_980_kflop_per_sample_and_a_bit_less_fused_layers():
    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    first = 2 * 6 * 26 * 26 * 9  # forward; nobody asks for the gradient by the images
    second = 2 * 16 * 11 * 11 * 6 * 9
    dense = 2 * (400 * 84 + 84 * 10)
    assert flops_of(network, fused=False).sum() == 2 * first + 3 * second + 3 * dense == 979_920
    without_what_no_pooling_covers = 2 * 16 * 10 * 10 * 6 * 9
    assert flops_of(network).sum() == 2 * first + 3 * without_what_no_pooling_covers + 3 * dense


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (pc.Conv2D(3, 3, bias=False), (2, 9, 8)),
        (pc.Conv2D(5, (2, 3), stride=(2, 1), bias=False), (4, 7, 7)),
        (pc.Dense(6, bias=False), (11,)),
    ],
)
def test_a_layer_multiplies_and_adds_as_often_as_ones_add_up_to(layer, shape):
    network = pc.NetworkHandler((layer,), shape)
    network.params[:] = 1
    output = network.forward(np.ones((*shape, 1), np.float32))
    assert output.sum() == layer.multiply_adds(shape)


def test_a_profile_changes_no_bit():
    plain, _ = train()
    watched, _ = train(profiler=pc.Profiler())
    assert watched.parameters_sha256() == plain.parameters_sha256()


class SlowReporter:
    def on_batch_end(self, step, logs):
        time.sleep(0.002)

    def on_test_end(self, logs):
        time.sleep(0.05)


def the_whole_training(profiler, history):
    """The profile of the only rank, which has all samples of three epochs, and all the time of the training.

    All of 0.1 to 0.3 s, up to 0.05 s in which other programs may run between two looks at the clock.
    """
    (rank,) = profiler.profile.ranks
    assert rank.samples == 3 * 211
    assert rank.total.sum() == pytest.approx(history.train_seconds, rel=0.03, abs=0.05)
    return rank


def test_the_phases_add_up_to_the_seconds_of_training():
    profiler = pc.Profiler()
    _, history = train(profiler=profiler, evaluate_every=4, callbacks=[SlowReporter()])
    rank = the_whole_training(profiler, history)
    assert rank.steps == 27
    assert 0.002 <= rank.median_step <= 1.5 * history.train_seconds / 27  # other programs make few steps long
    report = profiler.profile.phases.index("report")
    assert rank.median[report] >= 0.002
    assert rank.total[report] >= 27 * 0.002


def test_the_update_is_timed_as_such():
    class SlowSGD(pc.SGD):
        def update(self, *arguments, **options):
            time.sleep(0.003)
            return super().update(*arguments, **options)

    profiler = pc.Profiler()
    _, history = train(profiler=profiler, optimizer=SlowSGD(0.1))
    rank = the_whole_training(profiler, history)
    milliseconds = dict(zip(profiler.profile.phases, 1e3 * rank.median, strict=True))
    assert milliseconds["update"] >= 3 > milliseconds["order"]


def test_medians_are_those_of_the_last_steps(monkeypatch):
    monkeypatch.setattr("parallelcnn.profiling.profiler._STEPS_AT_ONCE", 20)

    def sleep(step, logs):
        time.sleep(0.004 if step > 14 else 0)

    profiler = pc.Profiler()
    train(profiler=profiler, callbacks=[pc.LambdaCallback(on_batch_end=sleep)])  # 27 steps
    (rank,) = profiler.profile.ranks
    assert rank.median[profiler.profile.phases.index("report")] >= 0.004


def test_the_time_is_booked_to_the_layer_that_took_it():
    layers = (pc.Conv2D(3, 3), Slow(3, 1), pc.Flatten(), Slow(1, 5), pc.Dense(5))
    profile = profiled(pc.NetworkHandler(layers, (1, 11, 9)), epochs=1)
    (rank,) = profile.ranks
    milliseconds = dict(zip(profile.phases, 1e3 * rank.median, strict=True))
    slow = {"forward 1": 3, "backward 1": 1, "forward 3": 1, "backward 3": 5}
    for phase, took in milliseconds.items():
        wanted = slow.get(phase, 0)
        assert wanted <= took < wanted + 1, phase
    assert profile.layers == ["Conv2D(3, 3)", "Slow(3, 1)", "Flatten()", "Slow(1, 5)", "Dense(5)"]


def test_rates_are_operations_over_time():
    """Stamps made by hand: two threads, of which one takes two passes, in one step of 1,000 ns; a layer."""
    steps = np.array([[0, 700, 800, 900, 1000]])
    passes = np.array(
        [
            # step, thread, samples, load began, loaded, forward, backward began, backward
            [0, 0, 3, 10, 20, 120, 130, 330],
            [0, 0, 3, 330, 340, 440, 450, 650],
            [0, 1, 4, 20, 40, 240, 250, 600],
        ]
    )
    (found,) = durations_of(steps, passes, latest=np.array([760]), threads=2)
    order, load, forward, loss, backward, join, wait, reduce, update, report = found
    assert order == 10
    assert load == (10 + 10 + 20) / 2
    assert forward == (100 + 100 + 200) / 2
    assert loss == 15
    assert backward == (200 + 200 + 350) / 2
    assert join == 690 - load - forward - loss - backward
    assert (wait, reduce, update, report) == (60, 40, 100, 100)
    assert found.sum() == 1000
    rates = rates_of(found[np.newaxis], np.array([80, 150]), passes, threads=2)
    np.testing.assert_allclose(rates, [[800 / 400, 1500 / 750]])


def test_the_last_to_come_to_the_sum_does_not_wait_and_nobody_waits_longer_than_the_sum_takes():
    steps = np.array([[0, 700, 800, 900, 1000], [1000, 1700, 1800, 1900, 2000]])
    passes = np.array([[0, 0, 1, 0, 1, 2, 3, 4], [1, 0, 1, 1000, 1001, 1002, 1003, 1004]])
    waits = durations_of(steps, passes, latest=np.array([700, 9999]), threads=1)[:, 6]
    np.testing.assert_array_equal(waits, [0, 100])


def test_times_of_a_clock_that_is_late_and_slow_become_those_of_rank_0():
    ours = np.array([1_000, 501_000, 1_001_000])
    of_rank_0 = on_clock_of_rank_0(ours, before=(1_000, 70_000), after=(1_001_000, 70_500))
    np.testing.assert_array_equal(of_rank_0, [71_000, 571_250, 1_071_500])


def test_the_time_line_shows_the_last_steps_and_their_layers():
    profile = profiled(trace_steps=11, evaluate_every=5)
    events = check_time_line(trace(profile), ranks=1, steps=range(17, 28))
    names = [event["name"] for event in events]
    for name in [
        *(repr(layer) for layer, _ in small.network().fused_layers),
        "load",
        "forward",
        "loss",
        "backward",
        "update",
        "report",
    ]:
        assert names.count(name) in (11, 22), name
    assert names.count("evaluate") == 4  # after minibatches 18 (an epoch), 20, 25, and 27
    steps = [event for event in events if event["name"].startswith("step ")]
    for name in ("load", "forward", "backward", "update"):
        for event, step in zip([event for event in events if event["name"] == name], steps, strict=True):
            assert step["ts"] <= event["ts"] < step["ts"] + step["dur"]


def test_a_share_that_goes_through_the_layers_in_blocks_adds_up_too():
    network = small.network()
    network.replica.block_size = 16
    profiler = pc.Profiler()
    _, history = train(network, profiler, callbacks=[SlowReporter()])
    the_whole_training(profiler, history)
    events = check_time_line(trace(profiler.profile), ranks=1, steps=range(1, 28))
    loads = [event for event in events if event["name"] == "load"]
    assert [event["args"]["samples"] for event in loads] == 3 * ([16, 9] * 8 + [11])


def test_two_threads_are_two_rows_of_the_time_line_and_what_they_do_adds_up():
    profiler = pc.Profiler()
    _, history = train(profiler=profiler, threads=2, callbacks=[SlowReporter()])
    rank = the_whole_training(profiler, history)
    assert rank.threads == 2
    events = check_time_line(trace(profiler.profile), ranks=1, steps=range(1, 28))
    for thread, samples in ((1, 12), (2, 13)):
        loads = [event for event in events if event["name"] == "load" and event["tid"] == thread]
        assert len(loads) == 27
        assert loads[0]["args"]["samples"] == samples
    assert {event["name"] for event in events if event["tid"] == 2}.isdisjoint({"join", "reduce", "update", "report"})


def test_the_threads_of_all_ranks_are_rows_of_their_own():
    profile = profiled(threads=3)
    twice = replace(profile, ranks=profile.ranks * 2)
    events = check_time_line(trace(twice), ranks=2, steps=range(1, 28))
    loads = [(event["pid"], event["tid"]) for event in events if event["name"] == "load"]
    rows = [(1, 1), (1, 2), (1, 3), (4, 4), (4, 5), (4, 6)]
    assert {row: loads.count(row) for row in loads} == dict.fromkeys(rows, 27)


def test_a_long_training_is_digested_in_parts_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(profiler_module, "_STEPS_AT_ONCE", 5)
    profiler = pc.Profiler(trace_steps=12)
    _, history = train(profiler=profiler, callbacks=[SlowReporter()])
    (rank,) = profiler.profile.ranks
    assert rank.steps == 27
    assert rank.samples == 3 * 211
    assert rank.pauses > 0
    assert rank.total.sum() + rank.pauses == pytest.approx(history.train_seconds, rel=0.03, abs=0.02)
    check_time_line(trace(profiler.profile), ranks=1, steps=range(16, 28))


def test_the_time_line_is_shorter_where_it_would_be_large(monkeypatch):
    monkeypatch.setattr(profiler_module, "_TRACE_EVENTS", 100)
    found = trace(profiled())
    assert 20 < len(found["traceEvents"]) <= 100


def test_a_log_makes_room_for_more_rows_than_were_foreseen():
    log = stamps.Log(columns=2, rows=1)
    for number in range(9):
        log.numbers[log.begin] = log.numbers[log.begin + 1] = number
        log.next_row()
    np.testing.assert_array_equal(log.take(), np.repeat(np.arange(9), 2).reshape(9, 2))
    assert log.count == 0


def test_without_a_profiler_nothing_is_noted(monkeypatch):
    def fail():
        pytest.fail("somebody noted the time")

    monkeypatch.setattr(stamps, "clock", fail)
    train(epochs=1)
    with pytest.raises(pytest.fail.Exception):
        train(profiler=pc.Profiler(), epochs=1)


def test_after_a_profiled_training_the_network_is_watched_no_more(monkeypatch):
    network = small.network()
    train(network, pc.Profiler(), epochs=1)
    monkeypatch.setattr(stamps, "clock", lambda: pytest.fail("somebody noted the time"))
    train(network, epochs=1)


def test_the_table_tells_of_every_layer_rank_and_rate_and_a_second_training_replaces_the_first():
    profiler = pc.Profiler()
    train(profiler=profiler, epochs=1)
    train(pc.NetworkHandler((pc.Flatten(), pc.Dense(5)), (1, 11, 9)), profiler=profiler, epochs=2)
    table = profiler.table()
    assert "18 steps, 422 samples, 1 rank of 1 thread\n" in table
    assert "Conv2D" not in table
    (flatten,) = [line.split() for line in table.splitlines() if line.startswith("Flatten()")]
    (dense,) = [line.split() for line in table.splitlines() if line.startswith("Dense(5)")]
    assert flatten[2:4] == ["-", "-"]
    (rank,) = profiler.profile.ranks
    assert dense[2] == f"{rank.rates[1]:.1f}"
    assert dense[3] == f"{100 * rank.rates[1] / rank.matrix_rate:.0f}"
    whole = [line for line in table.splitlines() if line.startswith("0 ")][-1].split()
    *parts, everything = map(float, whole[1:])
    assert len(parts) == 10
    assert sum(parts) == pytest.approx(everything, abs=0.006)  # rounded to milliseconds each
    assert everything == pytest.approx(rank.total.sum(), abs=0.001)


def test_the_machines_rate_is_that_of_a_product_of_matrices():
    a, b = np.random.default_rng(0).random((2, 512, 512), np.float32)
    began = time.perf_counter()
    for _ in range(5):
        np.matmul(a, b)
    threads_and_all = 5 * 2 * 512**3 / (time.perf_counter() - began) / 1e9
    assert 0.05 * threads_and_all < matrix_rate() < 20 * threads_and_all


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_a_profiler_with_no_steps_to_show_is_refused(steps):
    with pytest.raises(InputError, match=f"trace_steps must be an integer of at least 1, got {steps}"):
        pc.Profiler(steps)


def test_a_table_of_nothing_is_refused(tmp_path):
    profiler = pc.Profiler()
    for ask in (profiler.table, lambda: profiler.save_trace(tmp_path / "trace.json")):
        with pytest.raises(InputError, match="has recorded no complete training"):
            ask()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_idx_folder(tmp_path_factory.mktemp("data") / "stripes", n_train=230, n_test=70)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=[pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.slow])])
def test_the_command_prints_the_table_once_and_leaves_it_and_the_time_line(ranks, folder, tmp_path):
    out = tmp_path / "out"
    line = ["train", "--data", folder, "--epochs", 2, "--batch-size", 50, "--out", out]
    ran = parallelcnn(*line, "--profile", ranks=ranks)
    assert ran.code == 0, ran.err
    table = (out / "profile.txt").read_text()
    assert ran.out.count(table) == 1
    assert ran.out.count("layer, as it runs") == 1
    assert f"10 steps, 460 samples, {ranks} rank" in table
    seconds = json.loads((out / "summary.json").read_text())["train_seconds"]
    whole = [row.split() for row in table.split("rank, s of training")[1].splitlines()[1:]]
    assert [row[0] for row in whole] == [str(rank) for rank in range(ranks)]
    for row in whole:
        assert float(row[-1]) == pytest.approx(seconds, rel=0.1, abs=0.05)  # ranks enter the loop one by one
    check_time_line(json.loads((out / "trace.json").read_text()), ranks, range(1, 11))

    ran = parallelcnn(*line, ranks=ranks)
    assert ran.code == 0, ran.err
    assert "layer, as it runs" not in ran.out
    assert not (out / "profile.txt").exists()
    (earlier,) = [path for path in out.glob("before-*")]
    assert (earlier / "profile.txt").read_text() == table
    assert (earlier / "trace.json").exists()
