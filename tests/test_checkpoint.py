"""Checkpoints: what was saved comes back to the bit, and nothing else is taken for one."""

import io
import json
import math
import os

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import CheckpointError, InputError, TrainingWarning
from parallelcnn.files.archive import seal
from parallelcnn.resilience.safeguard import TrainingSafeguard
from parallelcnn.training.checkpoint import CheckpointSaver, facts_that_changed, save_checkpoint

FACTS = {"layers": ["Dense(5)"], "seed": 3, "reproducible": 8}


def history(steps=7, accuracies=(0.5, None)):
    rng = np.random.default_rng(0)
    tests = [(3 + i, 1 + i, pc.Evaluation(0.25 / (i + 1), accuracy, 97)) for i, accuracy in enumerate(accuracies)]
    return pc.History(rng.random(steps).tolist(), tests, 20 * steps, 1.5, lost_ranks=2)


def checkpoint(steps=7, size=11):
    rng = np.random.default_rng(steps)
    state = {"params": rng.random(size, np.float32), "velocity": rng.random(size, np.float32)}
    return pc.Checkpoint(FACTS, state, history(steps))


def same(one, other):
    return (
        one.facts == other.facts
        and one.network == other.network
        and one.history == other.history
        and one.state.keys() == other.state.keys()
        and all(
            one.state[name].dtype == other.state[name].dtype and np.array_equal(one.state[name], other.state[name])
            for name in one.state
        )
    )


def test_a_checkpoint_comes_back_with_every_bit(tmp_path):
    path = tmp_path / "c.npz"
    for written in (checkpoint(), pc.Checkpoint({}, {"params": np.zeros(0)}, pc.History())):
        save_checkpoint(path, written)
        assert same(pc.load_checkpoint(path), written)
    assert [file.name for file in tmp_path.iterdir()] == ["c.npz"]


def test_numpy_alone_can_read_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c.npz", checkpoint())
    with np.load(tmp_path / "c.npz", allow_pickle=False) as arrays:
        assert json.loads(str(arrays["description"]))["facts"] == FACTS
        np.testing.assert_array_equal(arrays["state.params"], checkpoint().state["params"])


def test_no_bit_of_a_checkpoint_may_flip_unseen(tmp_path):
    path, rng = tmp_path / "c.npz", np.random.default_rng(0)
    save_checkpoint(path, checkpoint())
    good = path.read_bytes()
    refused = 0
    for place in rng.integers(0, len(good), 400):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << rng.integers(8)]) + good[place + 1 :])
        try:
            # What is read all the same lost a bit of zip's own that says nothing, such as a date.
            assert same(pc.load_checkpoint(path), checkpoint())
        except CheckpointError:
            refused += 1
    assert refused > 300


def rewritten(good, **changes):
    """A checkpoint in which some arrays are others, with its old SHA-256."""
    with np.load(io.BytesIO(good), allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    kept.update({name.replace("__", "."): value for name, value in changes.items()})
    content = io.BytesIO()
    np.savez(content, **{name: value for name, value in kept.items() if value is not None})
    return content.getvalue()


def described(good, **changes):
    with np.load(io.BytesIO(good), allow_pickle=False) as arrays:
        description = json.loads(str(arrays["description"]))
    return rewritten(good, description=np.array(json.dumps({**description, **changes})))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda good: good[: len(good) // 2], "is no checkpoint, or a damaged one"),
        (lambda good: good[:-1], "is no checkpoint, or a damaged one|is damaged"),
        (lambda good: b"", "is no checkpoint, or a damaged one"),
        (lambda good: b"PK" * 1000, "is no checkpoint, or a damaged one"),
        (lambda good: rewritten(good, losses=np.zeros(7)), "not what its SHA-256 says"),
        (lambda good: rewritten(good, state__params=np.zeros(11, np.float32)), "not what its SHA-256 says"),
        (lambda good: rewritten(good, losses=None), "does not hold what its description says"),
        (lambda good: described(good, samples_seen=1), "not what its SHA-256 says"),
        (lambda good: described(good, facts={"seed": 4}), "not what its SHA-256 says"),
        (lambda good: described(good, version=3), "has version 3 of the format; this program reads versions 1 to 2"),
        (lambda good: described(good, version=True), "has version True of the format"),
        (
            lambda good: described(good, format="parallelcnn model"),
            "is no checkpoint: .* a model file, which has no history",
        ),
        (lambda good: described(good, arrays=7), "does not hold what its description says"),
        (lambda good: described(good, sha256=None), "not what its SHA-256 says"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_a_sentence(break_it, message, tmp_path):
    path = tmp_path / "c.npz"
    save_checkpoint(path, checkpoint())
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        pc.load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_file_is_a_checkpoint_without_history(tmp_path):
    network = small.network(seed=3)
    network.prediction, network.input_range = "output", (-1.0, 1.0)
    pc.save_model(tmp_path / "model.npz", network)
    with pytest.raises(
        CheckpointError, match="is no checkpoint: its description says that it is a model file, which has"
    ):
        pc.load_checkpoint(tmp_path / "model.npz")
    CheckpointSaver(pc.Serial(), pc.CheckpointFolder(tmp_path), FACTS).save(network, history(5))
    for file in ("model.npz", "step-000000005.npz"):
        again = pc.load_model(tmp_path / file)
        assert again.layers == network.layers
        assert again.parameters_sha256() == network.parameters_sha256()
        assert (again.prediction, again.input_range) == (network.prediction, network.input_range)
    with np.load(tmp_path / "step-000000005.npz", allow_pickle=False) as arrays:
        assert arrays["0.weight"].shape == (3, 1, 3, 3)
    restored = pc.load_checkpoint(tmp_path / "step-000000005.npz")
    np.testing.assert_array_equal(restored.state["params"], network.params)
    assert restored.history == history(5)


def test_a_checkpoint_of_version_1_is_resumed_from_but_holds_no_layers(tmp_path):
    arrays = {f"state.{name}": vector for name, vector in checkpoint().state.items()}
    arrays["losses"] = np.array(history().losses)
    arrays["evaluations"] = np.array([[3, 1, 0.25, 0.5, 97], [4, 2, 0.125, np.nan, 97]])
    facts = {**FACTS, "grains": FACTS["reproducible"]}  # its former name
    del facts["reproducible"]
    description = {"format": "parallelcnn checkpoint", "version": 1, "facts": facts, "arrays": list(arrays)}
    description |= {"samples_seen": 140, "train_seconds": 1.5, "lost_ranks": 2}
    text = json.dumps({**description, "sha256": seal(description, arrays)})
    np.savez(tmp_path / "c.npz", description=np.array(text), **arrays)
    assert same(pc.load_checkpoint(tmp_path / "c.npz"), checkpoint())
    with pytest.raises(CheckpointError, match=r"c.npz is a checkpoint of an earlier version, which holds no layers"):
        pc.load_model(tmp_path / "c.npz")


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def save_steps(folder, steps, evaluated=()):
    for step in range(1, steps + 1):
        done = history(step, ())
        done.evaluations = [one for one in evaluated if one[0] <= step]
        folder.save(pc.Checkpoint(FACTS, small.network().state, done))


def save_again(folder, *steps):
    saver = CheckpointSaver(pc.Serial(), folder, FACTS)
    for step in steps:
        saver.save(small.network(), history(step))


def test_the_last_are_kept_and_files_of_others_are_not_touched(tmp_path):
    (tmp_path / "step-mine.npz").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    save_steps(pc.CheckpointFolder(tmp_path, keep_last=3), 12)
    wanted = ["notes.txt", *(f"step-{step:09}.npz" for step in (10, 11, 12)), "step-mine.npz"]
    assert names(tmp_path) == wanted


def test_the_best_is_kept_whatever_comes_after(tmp_path):
    tests = [(step, step, pc.Evaluation(loss, accuracy, 97)) for step, loss, accuracy in (
        (2, 0.3, 0.8), (5, 0.5, 0.9), (6, 0.4, 0.9), (8, 0.1, 0.7))]  # fmt: skip
    save_steps(pc.CheckpointFolder(tmp_path, keep_last=1, keep_best=True), 10, tests)
    assert names(tmp_path) == ["step-000000006.npz", "step-000000010.npz"]


def test_the_newest_that_reads_well_is_taken_and_the_others_are_named(tmp_path):
    folder = pc.CheckpointFolder(tmp_path, keep_last=5)
    assert folder.newest() is None
    save_steps(folder, 5)
    assert folder.newest().history.steps == 5
    assert folder.newest(up_to=3).history.steps == 3
    (tmp_path / "step-000000005.npz").write_bytes(b"torn")
    good = (tmp_path / "step-000000004.npz").read_bytes()
    (tmp_path / "step-000000004.npz").write_bytes(good[:-100])
    with pytest.warns(TrainingWarning) as warned:
        assert folder.newest().history.steps == 3
    assert [f"step-00000000{5 - i}.npz" in str(one.message) for i, one in enumerate(warned)] == [True, True]
    assert all("taking the checkpoint before it" in str(one.message) for one in warned)


def test_a_full_disk_costs_a_warning_and_leaves_the_old_checkpoints(tmp_path, monkeypatch):
    folder = pc.CheckpointFolder(tmp_path, keep_last=1)
    save_steps(folder, 1)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.warns(TrainingWarning, match="no checkpoint after minibatch 2 .No space left on device: ") as said:
            save_again(folder, 2, 3)
    assert len(said) == 1
    assert names(tmp_path) == ["step-000000001.npz"]
    save_again(folder, 4)
    assert names(tmp_path) == ["step-000000004.npz"]


def test_a_checkpoint_that_was_just_written_stays_beside_later_ones_of_an_earlier_run(tmp_path):
    folder = pc.CheckpointFolder(tmp_path, keep_last=1)
    save_again(folder, 9, 4)
    assert names(tmp_path) == ["step-000000004.npz", "step-000000009.npz"]


def test_the_old_one_stays_until_the_new_one_reads_back_well(tmp_path, monkeypatch):
    folder = pc.CheckpointFolder(tmp_path, keep_last=1)
    save_steps(folder, 1)
    before = os.fsync

    def spoil(descriptor):
        before(descriptor)
        os.pwrite(descriptor, b"what a broken disk gives back", 100)

    monkeypatch.setattr("os.fsync", spoil)
    with pytest.warns(
        TrainingWarning, match="no checkpoint after minibatch 2 .*step-000000002.npz is not written: it does"
    ):
        save_again(folder, 2)
    assert names(tmp_path) == ["step-000000001.npz"]
    assert folder.newest().history.steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_steps": 0}, "every_steps must be an integer of at least 1, got 0"),
        ({"every_steps": 2.5}, "every_steps must be an integer"),
        ({"every_seconds": 0}, "every_seconds must be a finite number above 0, got 0"),
        ({"every_seconds": math.inf}, "every_seconds must be a finite number above 0, got inf"),
        ({"every_seconds": True}, "every_seconds must be"),
        ({"keep_last": 0}, "keep_last must be an integer of at least 1, got 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        pc.CheckpointFolder("x", **arguments)


def test_facts_are_compared_as_json_holds_them():
    before = {"layers": ["Dense(5)"], "shape": [1, 2], "seed": 3}
    assert list(facts_that_changed({"layers": ["Dense(5)"], "shape": (1, 2), "seed": 3}, before)) == []
    assert list(facts_that_changed({"seed": 4, "more": 1}, before)) == [("seed", 3, 4), ("more", None, 1)]


def test_after_the_ranks_went_back_a_step_is_saved_again(tmp_path):
    network, history = small.network(), pc.History([0.5] * 20, samples_seen=20)
    folder = pc.CheckpointFolder(tmp_path, every_steps=10)
    safeguard = TrainingSafeguard(
        pc.Serial(), network, history, "checkpoint", CheckpointSaver(pc.Serial(), folder, {}), recovers=True
    )
    saved = tmp_path / "step-000000020.npz"
    assert not safeguard.between_steps(epoch_ended=False, save=False)
    assert saved.exists()
    saved.write_bytes(b"damaged")
    safeguard._replica_check.compare_and_repair = lambda: True  # the ranks differ, and go back
    history.losses.append(0.5)
    assert safeguard.between_steps(epoch_ended=True, save=False)
    del safeguard._replica_check.compare_and_repair, history.losses[20:]
    assert not safeguard.between_steps(epoch_ended=False, save=False)
    assert pc.load_checkpoint(saved).history.steps == 20
