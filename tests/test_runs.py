"""`parallelcnn runs`: finding, listing, sorting and plotting runs, also unfinished, damaged and malicious ones."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from launch import refused
from report_cases import check_page

from parallelcnn.files.run_files import DAMAGED, DONE, UNFINISHED, find_runs, last_evaluation, number_of, read_run
from parallelcnn.training.config import TrainConfig


def write_run(path: Path, started="2026-11-30T15:02:00+00:00", accuracy=0.9, seconds=1.5, epochs=3, **settings):
    """The files of a run of 10 minibatches an epoch; accuracy None: one that has not finished."""
    path.mkdir(parents=True)
    config = TrainConfig(model="paper", epochs=3, **settings)
    (path / ".lock").write_text("token")
    (path / "config.toml").write_text(config.to_toml())
    rows = []
    for epoch in range(1, epochs + 1):
        rows += [{"step": 10 * epoch - 10 + i, "epoch": epoch, "loss": 2 / epoch} for i in range(1, 11)]
        rows.append({"step": 10 * epoch, "epoch": epoch, "test_loss": 1 / epoch, "test_accuracy": 1 - 0.3 / epoch})
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if accuracy is not None:
        results = {"test_accuracy": accuracy, "test_loss": 1 - accuracy, "train_seconds": seconds, "started": started}
        ranks = {"ranks": 1, "threads": [2], "parameters_sha256": "0"}
        (path / "summary.json").write_text(json.dumps(results | ranks))
    at = datetime.fromisoformat(started).timestamp()
    os.utime(path / "config.toml", (at, at))
    return path


@pytest.fixture
def runs(tmp_path):
    place = tmp_path / "runs"
    write_run(place / "first", "2026-11-30T10:00:00+00:00", 0.91, 9.0, learning_rate=0.3)
    write_run(place / "deeper" / "second", "2026-11-30T12:00:00+02:00", 0.97, 5.0, learning_rate=0.01)
    write_run(place / "third", "2026-11-30T11:00:00+00:00", 0.85, 7.0, learning_rate=0.1, schedule="cosine")
    write_run(place / "going-on", "2026-12-01T00:00:00+00:00", accuracy=None, epochs=2)
    return place


def lines_of(ran):
    assert ran.code == 0, ran.err
    return ran.out.splitlines()


def test_runs_are_listed_newest_first_with_the_settings_in_which_they_differ(runs, here):
    head, *rows = lines_of(here("runs", runs))
    assert head.split() == [
        *("run", "started", "(UTC)", "model", "data", "learning_rate", "schedule"),
        *("epochs", "accuracy", "loss", "time", "status"),
    ]
    assert [row.split()[0] for row in rows] == ["going-on", "third", "deeper/second", "first"]
    assert rows[0].split()[3:] == ["paper", "digits", "constant", "2/3", "85.00", "%", "0.5000", "unfinished"]
    assert rows[1].split()[1:] == [
        *("2026-11-30", "11:00", "paper", "digits", "0.1", "cosine"),
        *("3/3", "85.00", "%", "0.1500", "7.00", "s", "done"),
    ]


def test_settings_that_a_config_does_not_name_have_their_defaults(runs, here):
    config = runs / "first" / "config.toml"
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith(("resize", "normalize", "augment"))))
    head, *_ = lines_of(here("runs", runs))
    assert "resize" not in head.split()
    assert "normalize" not in head.split()


def test_paths_in_the_current_directory_are_relative(tmp_path, here, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    places = {"a": "photos", "b": "net.py:make", "c": "../other", "d": "."}
    for name, data in places.items():
        write_run(tmp_path / "work" / "runs" / name, data=os.path.abspath(data))
    of_a, of_b, of_c, of_d = (row.split()[4] for row in lines_of(here("runs", "--sort", "name"))[1:])
    assert (of_a, of_b) == ("photos", "net.py:make")
    assert of_c.endswith("/other")
    assert not of_c.startswith("../")
    assert of_d.endswith("/work")
    assert json.loads(here("runs", "--json", "--sort", "name").out)[0]["settings"]["data"] == os.path.abspath("photos")


def test_times_of_other_time_zones_are_compared_in_utc(runs):
    (second,) = (run for run in find_runs(runs) if run.path.name == "second")
    assert second.started.timestamp() == read_run(runs / "first").started.timestamp()


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("accuracy", ["second", "first", "going-on", "third"]),
        ("loss", ["second", "first", "third", "going-on"]),
        ("time", ["second", "third", "first", "going-on"]),
        ("name", ["second", "first", "going-on", "third"]),
    ],
)
def test_runs_are_sorted_the_best_first(key, order, runs, here):
    # The accuracy of the unfinished run, 0.85, is that of its last evaluation; of equal runs the newest comes first.
    rows = lines_of(here("runs", runs, "--sort", key))[1:]
    assert [row.split()[0].rpartition("/")[2] for row in rows] == order


def test_one_run_and_runs_that_agree_show_no_settings(tmp_path, here):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    assert lines_of(here("runs", tmp_path))[0].split()[3:] == [
        "model",
        "data",
        "epochs",
        "accuracy",
        "loss",
        "time",
        "status",
    ]
    (_, row) = lines_of(here("runs", tmp_path / "a"))
    assert row.startswith("a  ")


def test_the_list_as_json(runs, here):
    found = json.loads(here("runs", runs, "--json", "--sort", "accuracy").out)
    assert found[0]["path"] == str(runs / "deeper" / "second")
    assert found[0]["settings"]["learning_rate"] == 0.01
    assert (found[0]["test_accuracy"], found[0]["train_seconds"], found[0]["epochs_done"]) == (0.97, 5.0, 3)
    assert [one["status"] for one in found] == ["done", "done", "unfinished", "done"]


def test_the_curves_of_runs_are_drawn_together(runs, here, tmp_path):
    file = tmp_path / "compare.html"
    ran = here("runs", runs, "--plot", file)
    assert ran.out.endswith(f"written    {file}\n")
    page = check_page(file.read_bytes())
    text = " ".join(page.text)
    assert page.texts_of["figcaption"] == ["Test loss", "Test accuracy", "Training loss"]
    assert "epoch 2\ngoing-on: 0.5\nthird: 0.5\ndeeper/second: 0.5\nfirst: 0.5" in text
    labels = [one["aria-label"] for one in page.all("svg") if "aria-label" in one]
    assert labels[0].startswith("Test loss: going-on ends at 0.5; third ends at 0.3333; ")
    refused_plot = here("runs", runs, "--plot", tmp_path / "none" / "x.html")
    assert refused_plot.code == 2
    assert f"--plot {tmp_path / 'none' / 'x.html'} cannot be written: No such file or directory" in refused_plot.err


def test_many_runs_are_drawn_up_to_a_limit(tmp_path, here):
    for i in range(40):
        write_run(tmp_path / "runs" / f"run{i:02}", learning_rate=0.01 + i)
    here("runs", tmp_path / "runs", "--plot", tmp_path / "x.html")
    page = check_page((tmp_path / "x.html").read_bytes())
    assert "The curves are those of the first 32 runs; 8 more are in the table." in page.text


def test_refusals_name_what_is_missing(here, tmp_path):
    refused(here("runs", tmp_path / "none"), "runs takes a directory, got")
    refused(here("runs", tmp_path), "holds no runs")
    refused(here("runs", tmp_path, "--sort", "size"), "invalid choice: 'size'")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("summary.json", "", "summary.json is damaged"),
        ("summary.json", "{", "summary.json is damaged"),
        ("summary.json", "[]", "summary.json is damaged"),
        ("summary.json", "[" * 100_000, "summary.json is damaged"),
        ("summary.json", '{"a": 1' + "0" * 5000 + "}", "summary.json is damaged"),
        ("summary.json", "\udcff", "summary.json is damaged"),
        ("summary.json", '{"name": "another program"}', "summary.json holds no results of a run"),
        ("config.toml", "epochs = ", "config.toml is damaged"),
        ("config.toml", "a = " + "[" * 5000, "config.toml is damaged"),
    ],
)
def test_damaged_files_are_named(name, content, problem, runs, here):
    (runs / "first" / name).write_text(content, errors="surrogateescape")
    run = read_run(runs / "first")
    assert (run.status, run.problem) == (DAMAGED, problem)
    assert f"damaged: {problem}" in here("runs", runs).out


def test_numbers_and_texts_that_are_no_results_do_no_harm(runs, here, tmp_path):
    summary = {
        "parameters_sha256": "0", "test_accuracy": "high", "test_loss": 10**400, "train_seconds": [1], "started": 7,
        "threads": {"a": 1}, "ranks": "many", "hosts": None,
    }  # fmt: skip
    (runs / "first" / "summary.json").write_text(json.dumps(summary))
    (runs / "first" / "config.toml").write_text('model = "\\u001b[31m<script>"\nlearning_rate = inf\nepochs = "x"\n')
    rows = ['{"step": 1e300, "epoch": -1e300, "test_loss": 1e300}', '{"step": "x"}', "[" * 9999, "7", "", "\x00"]
    rows += ['{"step": NaN, "epoch": 3, "test_loss": 0.5}', '{"step": 3, "epoch": 2, "test_loss": 1e29}']
    rows += [
        '{"step": 2, "epoch": [], "test_loss": -1e29, "test_accuracy": 5}',
        '{"step": 1, "epoch": 1, "loss": null}',
    ]
    (runs / "first" / "metrics.jsonl").write_text("\n".join(rows))
    ran = here("runs", runs, "--plot", tmp_path / "x.html")
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    check_page((tmp_path / "x.html").read_bytes())


def test_files_that_never_end_are_read_in_part(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    assert last_evaluation(run) == {}
    (run / "metrics.jsonl").unlink()
    with open(run / "metrics.jsonl", "w") as file:
        file.write('{"step": 1, "epoch": 1, "test_loss": 0.5}\n')
        file.truncate(2**34)
    assert last_evaluation(run) == {}
    (run / "summary.json").unlink()
    os.symlink("/dev/zero", run / "summary.json")
    assert read_run(run).problem == "summary.json cannot be read: not a regular file"
    with open(run / "config.toml", "a") as file:
        file.truncate(2**34)
    assert "config.toml is damaged" in read_run(run).problem


def test_only_run_directories_are_runs(tmp_path):
    run = write_run(tmp_path / "a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("x = 1")
    write_run(run / "before-2026")
    write_run(run / "checkpoints" / "x")
    os.symlink(run, tmp_path / "latest")
    assert {one.path.name for one in find_runs(tmp_path)} == {"a", "before-2026"}


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (0.5, 0.5), (True, None), ("1", None), (None, None), (10**400, None), (float("nan"), None)],
)
def test_a_number_is_a_number_of_reasonable_size(value, number):
    assert number_of({"x": value}, "x") == number


def test_status_of_runs(runs):
    assert {run.path.name: run.status for run in find_runs(runs)} == {
        "first": DONE, "second": DONE, "third": DONE, "going-on": UNFINISHED,
    }  # fmt: skip


def test_a_run_of_the_command_is_listed(here, folder, tmp_path):
    assert here("train", "--data", folder, "--epochs", 1, "--out", tmp_path / "runs" / "a").code == 0
    (row,) = json.loads(here("runs", tmp_path / "runs", "--json").out)
    summary = json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())
    assert row["status"] == "done"
    assert row["test_accuracy"] == summary["test_accuracy"]
    assert row["epochs_done"] == 1
    assert row["settings"]["ranks"] == 1
