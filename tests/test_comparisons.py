"""The scripts that compare and scale: what they compute is true, and each runs through at its smallest."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_idx_folder
from launch import environment, mpiexec, run, run_ranks

import parallelcnn as pc

SCRIPTS = Path(__file__).parent.parent / "scripts"
QUICK = ["--rounds", "1", "--seconds", "0.001"]


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def run_script(name, *arguments, limit=120):
    return run([sys.executable, str(SCRIPTS / name), *map(str, arguments)], limit)


def columns_of(page):
    """The cells of the rows of a page's first table."""
    rows = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_papers_network_costs_0_98_megaflop_a_sample():
    from networks import flop_per_sample

    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    assert flop_per_sample(network) == 2 * (2 * 54 * 26 * 26 + 3 * 864 * 11 * 11 + 3 * 400 * 84 + 3 * 84 * 10)


def test_a_table_says_plainly_where_parallelcnn_is_slower():
    from measuring import Spread, verdict

    assert verdict(Spread.of([0.8, 0.9, 0.7])) == "**slower: 0.80x (0.70 to 0.90)**"
    assert verdict(Spread.of([2.0, 1.9, 2.2])) == "2.00x (1.90 to 2.20)"


def test_results_that_differ_are_not_compared():
    from measuring import require_agreement

    ours = np.ones((3, 4), np.float32)
    require_agreement("output", [ours], [ours * 1.00001], 1e-4)
    for theirs in (ours * 1.001, ours * np.nan):
        with pytest.raises(pc.ParallelCNNError, match="output 0 differs from PyTorch's"):
            require_agreement("output", [ours], [theirs], 1e-4)


@pytest.mark.parametrize("name", ["paper", "CIFAR-size", "1x1 bottlenecks", "strided 3x3", "7x7 first"])
def test_onnxruntime_runs_the_same_network(name):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    from networks import NETWORKS
    from onnx_twin import onnx_twin

    layers, shape = NETWORKS[name]
    network = pc.NetworkHandler(layers, shape, seed=2)
    images = np.random.default_rng(0).random((3, *shape), np.float32)
    (theirs,) = onnx_twin(network, 1).run(None, {"images": images})
    np.testing.assert_allclose(network.predict(images), theirs, rtol=1e-3, atol=1e-5)


def test_networks_are_timed_on_one_core(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    page = tmp_path / "networks.md"
    done = run_script("compare_networks.py", "--only", "paper", "--batch-sizes", 3, "--out", page, *QUICK)
    assert done.code == 0, done.err
    (row,) = columns_of(page.read_text())
    assert row[:3] == ["paper", "3", "0.980"]
    assert "x (" in row[-1]
    assert "--out" not in page.read_text()


def test_a_network_that_takes_its_samples_in_blocks_is_compared_too(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from networks import NETWORKS

    layers, shape = NETWORKS["CIFAR-size"]
    samples = pc.NetworkHandler(layers, shape).worker.block_size + 1
    options = ["--only", "CIFAR-size", "--batch-sizes", samples, "--out", tmp_path / "page.md"]
    done = run_script("compare_networks.py", *options, *QUICK)
    assert done.code == 0, done.err
    (row,) = columns_of((tmp_path / "page.md").read_text())
    assert row[:2] == ["CIFAR-size", str(samples)]


@pytest.mark.mpi
def test_networks_are_timed_on_two_ranks(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    mpiexec()
    page = tmp_path / "networks.md"
    options = ["--cores", 2, "--only", "paper", "--batch-sizes", 3, "--out", page]
    done = run_script("compare_networks.py", *options, *QUICK)
    assert done.code == 0, done.err
    assert "2 MPI ranks" in page.read_text()
    assert len(columns_of(page.read_text())) == 1


def test_a_layer_is_timed_alone(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    page = tmp_path / "layers.md"
    done = run_script("compare_networks.py", "--layers", "--only", "3->64", "--batch-sizes", 2, "--out", page, *QUICK)
    assert done.code == 0, done.err
    (row,) = columns_of(page.read_text())
    assert row[:2] == ["3->64 32x32 7x7 stride 2", "2"]


def test_batch_sizes_are_swept_in_training_and_prediction(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    page, figure = tmp_path / "batches.md", tmp_path / "batches.png"
    options = ["--batch-sizes", 1, 6, "--out", page, "--figure", figure]
    done = run_script("compare_batch_sizes.py", *options, *QUICK)
    assert done.code == 0, done.err
    training, prediction = page.read_text().split("## Training")[1].split("## Prediction")
    for table in (training, prediction):
        assert [row[0] for row in columns_of(table)] == ["1", "6"]
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("script", "options", "complaint"),
    [
        ("compare_networks.py", ["--cores", "0"], "--cores: must be an integer of at least 1, got '0'"),
        ("compare_networks.py", ["--layers", "--cores", "2"], "--layers takes --cores 1, got 2"),
        ("compare_networks.py", ["--only", "resnet"], "got 'resnet'"),
        ("compare_batch_sizes.py", ["--seconds", "nan"], "--seconds: must be a number above 0, got 'nan'"),
        (
            "scaling.py",
            ["--out", "no/such/folder.md"],
            "must be a file in a folder that exists, got 'no/such/folder.md'",
        ),
        ("overlap.py", ["--out", "no/such/folder"], "--out: must be a folder that exists, got 'no/such/folder'"),
        ("overlap.py", ["--steps", "0"], "--steps: must be an integer of at least 1, got '0'"),
        ("overlap.py", [], "one rank has nobody to sum with"),
        ("scaling.py", ["--out", "/proc/page.md"], "'/proc/page.md' cannot be written: "),
        ("accuracy_over_seeds.py", ["--seeds", "0"], "--seeds: must be an integer of at least 1, got '0'"),
        ("accuracy_over_seeds.py", ["--ranks", "1", "--epochs", "0"], "epochs must be an integer of at least 1, got 0"),
        ("same_bits.py", ["--folder", "no/such"], "--folder: must be a folder that exists, got 'no/such'"),
        ("start_up.py", ["--data", "mnits"], "no data set and no folder is named 'mnits'"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(script, options, complaint):
    done = run_script(script, *options)
    assert done.code == 2
    assert complaint in done.err
    assert "Traceback" not in done.err


def test_a_page_that_cannot_be_written_is_told_in_a_sentence_and_the_earlier_one_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("earlier\n")
    line = f"{sys.executable} -c 'from measuring import write_page as write; from pathlib import Path"
    line += f'; write(Path("{page}"), "x" * 9000)\''
    done = run(["bash", "-c", f"ulimit -f 4; trap '' XFSZ; {line}"], PYTHONPATH=f"{SCRIPTS}:{SCRIPTS.parent}")
    assert done.code == 1
    assert done.err == f"-c: the page could not be written: [Errno 27] File too large: '{page}'\n"
    assert page.read_text() == "earlier\n"
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.parametrize("script", ["accuracy_over_seeds.py", "start_up.py"])
def test_an_interrupted_script_says_so(script):
    """As Ctrl-C does it: the script and the training that it has started get the signal."""
    line = [sys.executable, str(SCRIPTS / script), "--ranks", "1"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    time.sleep(2)  # it has started to train, or to start trainings
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert err == f"{script}: interrupted\n"


@pytest.mark.mpi
def test_hashes_are_compared_over_ranks_threads_and_a_resume_and_their_cost_is_timed(tmp_path):
    mpiexec()
    page, data = tmp_path / "same-bits.md", write_idx_folder(tmp_path / "data", 60, 10)
    options = ["--data", data, "--batch-size", 10, "--reproducible", 4, "--folder", tmp_path, "--page", page]
    done = run_script("same_bits.py", "--quick", *options)
    assert done.code == 0, done.err
    text = page.read_text()
    fixed, floats = text.split("## Hashes")[1].split("## What reproducible")[0].split("For comparison")
    rows = columns_of(fixed)
    assert [row[1:3] for row in rows[:4]] == [["1", "1"], ["1", "2"], ["2", "1"], ["2, then 3", "1"]]
    assert rows[3][3].startswith("left at minibatch 4 ")
    assert all("killed at minibatch 3 " in row[3] and row[1] == "3, then 2" for row in rows[4:])
    assert len({row[4] for row in rows}) == 1
    assert f"**{len(rows)} runs, 1 different hash.**" in fixed
    assert all(row[3] == "undisturbed" and row[4] != rows[0][4] for row in columns_of(floats))
    sums = columns_of(text.split("## What reproducible sums cost")[1].split("## What checkpoints")[0])
    assert [row[:2] for row in sums[:3]] == [["10", "1 x 1"], ["10", "1 x 2"], ["10", "2 x 1"]]
    assert all(" % (" in cell for row in sums[:3] for cell in row[3:])
    checkpoints = columns_of(text.split("## What checkpoints")[1])
    assert all(float(row[2].split()[0]) > 0 for row in checkpoints)
    assert [row[6] == "" for row in checkpoints] == [True, True, False]
    assert str(tmp_path) not in text
    assert [path.name for path in tmp_path.iterdir() if path != data] == [page.name]


def test_a_link_is_recovered_from_the_times_of_its_messages():
    from scaling_page import MESSAGE_BYTES
    from step_model import fit_link

    link = fit_link({str(size): [2e-6 + size / 5e9] for size in MESSAGE_BYTES})
    assert link == pytest.approx((2e-6, 1 / 5e9), rel=1e-3)


def test_the_allreduce_is_modelled_by_the_published_formulas():
    from step_model import Link

    link, addition = Link(1e-6, 1e-9), 1e-10
    assert link.allreduce(10**6, 1, addition) == 0
    # A short message travels whole; of a long one the parts.
    assert link.allreduce(8, 1024, addition) == pytest.approx(10 * (1e-6 + 8 * 1.1e-9))
    assert link.allreduce(10**8, 8, addition) == pytest.approx(6e-6 + 7 / 8 * 10**8 * (2e-9 + 1e-10))


def test_the_model_takes_the_largest_share_and_sums_within_nodes_first():
    from step_model import Link, Model

    node, network = Link(1e-6, 0.0), Link(1e-3, 0.0)
    model = Model({1: 1.0, 2: 2.0, 4: 4.0}, 8, 0.0, node, network, ranks_per_node=4)
    assert model.step(4, 1) == 4.0
    assert model.step(4, 3) == pytest.approx(2.0 + 2e-6)  # 3 ranks of 4 samples: one has two
    assert model.allreduce(8) == pytest.approx(2e-6 + 1e-3)
    assert math.isclose(model.per_sample, 1.0)


@pytest.mark.mpi
def test_scaling_is_measured_predicted_and_marked_where_ranks_share_a_core(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    mpiexec()
    page, figure = tmp_path / "scaling.md", tmp_path / "scaling.png"
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        options = ["--ranks", 2, "--batch-sizes", 4, "--samples-per-core", 3, "--out", page, "--figure", figure]
        done = run_script("scaling.py", *options, *QUICK)
    finally:
        os.sched_setaffinity(0, cores)
    assert done.code == 0, done.err
    measured = columns_of(page.read_text().split("## Measured")[1])[:4]
    assert [row[:3] for row in measured] == [
        ["strong, minibatch 4", "1 x 1", "4"],
        ["strong, minibatch 4", "2 x 1", "4"],
        ["weak, 3 samples a rank", "1 x 1", "3"],
        ["weak, 3 samples a rank", "2 x 1", "6"],
    ]
    assert [row[-1] for row in measured] == ["", "OVERSUBSCRIBED"] * 2
    predicted = columns_of(page.read_text().split("## Predicted")[1])
    assert "1024" in [row[0] for row in predicted]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_message_is_cut_behind_the_last_convolution_or_where_one_says():
    from overlap import Cut

    network = pc.NetworkHandler(pc.paper(), (1, 28, 28))
    convolutions = 6 * 9 + 6 + 16 * 6 * 9 + 16
    cut = Cut(network)
    # Layer 3, Flatten, has no parameters: what comes early is there once the first dense layer, layer 4, is done.
    assert (cut.first, cut.names[cut.ready], cut.start) == (2, "4 Dense", convolutions)
    assert Cut(network, 5).start == convolutions + 400 * 84 + 84
    assert Cut(network, 2).start == 6 * 9 + 6
    for first in (1, 6):
        with pytest.raises(pc.ParallelCNNError, match=rf"--from-layer must lie in \[2, 5\], .* got {first}"):
            Cut(network, first)


def cells_by_row(page):
    """The cells of the rows of all tables of a page, by the first one."""
    return {row[0]: row[1:] for row in columns_of(page)}


@pytest.mark.mpi
def test_the_time_line_shows_the_sum_that_begins_before_the_convolutions_are_done(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    mpiexec()
    data = write_idx_folder(tmp_path / "data", 60, 10)
    options = ["--samples-per-rank", 20, "--steps", 5, "--rounds", 2, "--data-dir", data, "--out", tmp_path]
    done = run_ranks(2, [str(SCRIPTS / "overlap.py"), *map(str, options)])
    assert done.code == 0, done.err
    (page,) = tmp_path.glob("overlap-*.md")
    assert "--data-dir FOLDER" in page.read_text()
    found = cells_by_row(page.read_text())
    assert all("(" in found[variant][0] for variant in ("begun early", "begun early, with tests", "no sum"))
    # Columns: one sum, begun early, with tests, no sum.
    begun, known = found["early sum: begun"], found["early sum: seen to be done"]
    dense, convolutions = (found[f"backward pass of {layer} done"] for layer in ("4 Dense", "1 PooledConv2D"))
    assert [begun[0], begun[3], known[0], known[3]] == [""] * 4
    for variant in (1, 2):
        assert float(dense[variant]) <= float(begun[variant]) < float(convolutions[variant])
        assert float(begun[variant]) < float(known[variant])
    assert float(known[1]) >= float(convolutions[1])
    one_sum = found["sum of the rest, or of all: begun"]
    assert float(one_sum[0]) >= float(convolutions[0])
    assert one_sum[3] == ""
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.mpi
def test_hiding_is_measured_on_three_ranks_with_another_network_and_another_cut():
    mpiexec()
    options = "--network CIFAR-size --from-layer 3 --samples-per-rank 2 --steps 2 --rounds 1"
    done = run_ranks(3, [str(SCRIPTS / "overlap.py"), *options.split()])
    assert done.code == 0, done.err
    assert "3 ranks on 1 node, a thread each, 2 samples each." in done.out
    assert "what layers 3 to 5 contribute, 83% of it" in done.out  # 94,346 of 113,739 numbers


@pytest.mark.mpi
def test_more_samples_than_a_network_takes_at_once_are_refused_before_hiding_is_measured():
    mpiexec()
    done = run_ranks(2, [str(SCRIPTS / "overlap.py"), "--network", "VGG-like", "--samples-per-rank", "1000"])
    assert done.code == 2
    assert done.err.count("--samples-per-rank must be at most 32, what this network takes at once, got 1000") == 1
    assert "Traceback" not in done.err
