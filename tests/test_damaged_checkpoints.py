"""Checkpoints whose SHA-256 is right and whose content is not: a fuzzer finds it, or somebody makes them."""

import io
import json
import time

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.errors import CheckpointError
from parallelcnn.files.archive import seal
from parallelcnn.training.checkpoint import load_checkpoint, save_checkpoint
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.preparation import facts_of, start

DATASET = small.dataset(7)
FACTS = facts_of(DATASET, DATASET, small.network(), loss=pc.SoftmaxCrossEntropy(), seed=0)


@pytest.fixture
def write_sealed(tmp_path):
    """Write a good checkpoint with some arrays (underscores for dots; None: without) and entries of its description
    that are others, sealed anew; returns its path."""

    def write(description=None, **changes):
        path = tmp_path / "step-000000002.npz"
        history = pc.History([2.5, 1.0], [(2, 1, Evaluation(1.5, 0.25, 7))], 7, 0.25)
        save_checkpoint(path, pc.Checkpoint(FACTS, {"params": small.network().params}, history))
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        described = json.loads(str(arrays.pop("description")))
        arrays.update({name.replace("_", "."): array for name, array in changes.items()})
        arrays = {name: array for name, array in arrays.items() if array is not None}
        described = {**described, "arrays": list(arrays), **(description or {})}
        del described["sha256"]
        text = json.dumps({**described, "sha256": seal(described, arrays)})
        np.savez(path, description=np.array(text), **arrays)
        return path

    return write


def test_a_checkpoint_sealed_anew_is_read(write_sealed):
    assert load_checkpoint(write_sealed()).history.steps == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"state_params": None},
        {"state_params": np.zeros((3, 3), np.float32)},
        {"state_params": np.array("parameters")},
        {"state_params": np.full(9, np.nan, np.float32)},
        {"losses": np.zeros((2, 2))},
        {"losses": np.array(1.5)},
        {"losses": np.array(["1.5"])},
        {"losses": np.array([1.5, np.nan])},
        {"evaluations": np.zeros((1, 4))},
        {"evaluations": np.zeros(5)},
        {"evaluations": np.full((1, 5), np.inf)},
        {"evaluations": np.full((1, 5), -1.0)},
        {"description": {"samples_seen": -500}},
        {"description": {"samples_seen": "9"}},
        {"description": {"samples_seen": None}},
        {"description": {"train_seconds": float("nan")}},
        {"description": {"lost_ranks": 10**4000}},
        {"description": {"facts": [["seed", 0]]}},
        {"description": {"arrays": [["losses"]]}},
    ],
    ids=str,
)
def test_what_no_training_can_go_on_from_is_refused_though_its_seal_is_right(changes, write_sealed):
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(write_sealed(**changes))


def test_an_array_that_is_named_many_times_is_not_read_many_times(write_sealed):
    many = {"arrays": ["state.params"] * 10_000}
    path = write_sealed(description=many, state_params=np.zeros(10**5, np.float32))
    began = time.process_time()
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    assert time.process_time() - began < 0.5


def test_what_a_checkpoint_says_of_its_training_cannot_take_the_message_over(write_sealed):
    path = write_sealed(description={"facts": {**FACTS, "seed": "\x1b[2J" + "x" * 9999}})
    with pytest.raises(CheckpointError, match=r"of another training: its seed is .*, not 0") as caught:
        start(pc.Serial(), small.network(), FACTS, load_checkpoint(path), 100)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3000
